"""The parts of a run that have no folder of their own: rows of this process, loss, evaluation, metrics and noise."""
