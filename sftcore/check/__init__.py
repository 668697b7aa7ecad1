"""What `sftcore check` finds in a recipe and its data before a run starts."""
