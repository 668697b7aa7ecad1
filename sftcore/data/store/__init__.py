"""Where prepared rows are kept: the cache and its keys, map-style data sets, and streams."""
