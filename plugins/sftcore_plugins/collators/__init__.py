"""Collators, which make a batch from token rows."""
