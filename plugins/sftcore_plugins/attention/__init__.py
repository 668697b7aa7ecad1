"""Attention implementations, and how each keeps the documents of a row apart."""
