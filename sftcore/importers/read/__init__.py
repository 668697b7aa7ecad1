"""Readers of other tools' files: YAML, shell scripts and Python, of which nothing is run."""
