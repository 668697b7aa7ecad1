"""Documents that share a row: the ways to keep them apart, and the proof on the model of the run that they are."""
