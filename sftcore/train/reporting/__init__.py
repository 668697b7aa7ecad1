"""How often a run is evaluated and saved, and where its trackers file it."""
