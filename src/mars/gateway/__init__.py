"""The gateway: an OpenAI-compatible proxy before vLLM that sees sessions."""
