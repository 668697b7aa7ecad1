"""A run in several processes: how they are started, end with their launcher, and agree."""
