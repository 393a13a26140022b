"""The tool runtime: commands of agents, run under leases of whole cores."""
