"""The process of a model, seen from both sides."""
