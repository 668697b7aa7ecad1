"""Several sources as one data set: which row of which source comes when."""
