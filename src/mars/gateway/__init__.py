"""The gateway: a proxy before vLLM, with OpenAI's and Anthropic's APIs, that sees sessions."""
