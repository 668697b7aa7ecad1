"""Packing documents into blocks of a fixed length."""
