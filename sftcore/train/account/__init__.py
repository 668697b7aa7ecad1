"""The loss of every row of a run, and what became of each: collected, logged by source, and written."""
