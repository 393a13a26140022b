"""MARS: co-scheduling of GPU inference and CPU tools for fleets of LLM agents."""
