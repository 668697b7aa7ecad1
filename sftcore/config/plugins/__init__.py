"""Installed plugins made ready for a run: found, refused where they are blocked or do not fit, given their options."""
