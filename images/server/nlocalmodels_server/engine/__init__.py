"""One model in one process: continuous batching over llama.cpp."""
