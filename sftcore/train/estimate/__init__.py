"""How much memory a run takes, from the shapes of one of its steps, without its weights."""
