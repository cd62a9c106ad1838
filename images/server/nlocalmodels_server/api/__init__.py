"""What clients see: the OpenAI-compatible API and health."""
