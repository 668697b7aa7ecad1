"""Losses, which compute what training minimises."""
