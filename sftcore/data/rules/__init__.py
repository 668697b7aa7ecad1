"""What the settings of a run make of each row."""
