"""A complete distribution for a new plugin, written for its author."""
