"""Losses that no plugin computes: the model's own, and smoothed labels or a user's function with weights."""
