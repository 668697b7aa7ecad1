"""The built-in plugins, a folder for each kind."""
