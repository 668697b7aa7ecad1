"""Helpers and classes under the names that TRL gives them, so that its users' scripts run."""
