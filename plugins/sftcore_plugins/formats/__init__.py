"""Formats, which make an example from a row of a data set."""
