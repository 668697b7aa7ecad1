"""Quantizing a trained model, and measuring what that costs."""
