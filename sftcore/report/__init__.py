"""The page of a run: its curves, plan, rows and figures, written from what the run leaves in its folder."""
