"""Noise that is added to a model's embeddings in training."""
