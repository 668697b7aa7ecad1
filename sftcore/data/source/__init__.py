"""Reading rows from local files and from the hub."""
