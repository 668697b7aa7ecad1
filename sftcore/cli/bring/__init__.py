"""Verbs for who comes from another tool, one file each."""
