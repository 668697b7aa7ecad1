"""What a plugin of each kind has to pass: one class of tests a kind, to be subclassed in three lines."""
