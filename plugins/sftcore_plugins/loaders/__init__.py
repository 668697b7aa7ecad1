"""Loaders, which read a model and its tokenizer."""
