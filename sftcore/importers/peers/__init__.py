"""What each of the other tools means by its settings, one file a tool."""
