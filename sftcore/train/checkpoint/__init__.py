"""Checkpoints: written as a whole or not at all, verified by checksum, and resumed from."""
