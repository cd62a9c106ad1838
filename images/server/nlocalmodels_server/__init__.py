"""Serves every GGUF model of a folder over an OpenAI-compatible API, continuously batched on llama.cpp."""

__version__ = "0.1.0"
