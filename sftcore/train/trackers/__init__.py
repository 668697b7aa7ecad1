"""The trackers of `report_to`: whether they can be used, and what they are told of a run."""
