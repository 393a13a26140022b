"""The tool runtime: commands of agents, run under core leases."""
