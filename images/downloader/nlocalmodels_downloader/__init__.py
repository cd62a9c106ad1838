"""Fetches the declared GGUF models onto a volume: resumed after a kill, verified on disk, published atomically."""
