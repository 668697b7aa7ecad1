"""What users bring of their own: hooks on the model, and methods of a subclass."""
