"""Losses that depend on the probability of each label alone, and their gradients."""
