"""Verbs for authors of plugins, one file each."""
