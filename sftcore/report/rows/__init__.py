"""Rows of a run that hurt: found in its list of rows, and shown with their texts."""
