"""Every row accounted for: what became of it, where it is in a batch, and the file that lists all of them."""
