"""Verbs about this machine, one file each."""
