"""The paper's scale in seconds: a simulated engine and tool pool under the live system's policies.

Never asyncio, never the wall clock.
"""
