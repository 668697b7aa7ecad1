"""What a recipe says of its data, and how that is read."""
