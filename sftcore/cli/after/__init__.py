"""Verbs for a run that has been trained."""
