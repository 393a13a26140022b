"""`mars serve`: vLLM with the plugin, the tool server and the gateway, as one thing."""
