"""Recipes described: a JSON schema for editors, words for shells, and where each value of a run comes from."""
