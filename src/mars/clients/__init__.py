"""What puts agents of other projects under leases, in their own process and by their own means.

Runs on Python 3.11 and later with mars' light dependencies: an agent's environment has no vLLM.
"""
