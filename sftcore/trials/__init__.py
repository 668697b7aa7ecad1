"""Trials of what plugins claim, on the model and the rows of a run, before its first step."""
