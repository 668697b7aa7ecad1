"""Configurations of other tools that become recipes: read without running anything, with an account of every line."""
