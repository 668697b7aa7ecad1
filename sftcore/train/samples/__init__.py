"""Samples of a run: what the model is asked as it trains, and what it answers."""
