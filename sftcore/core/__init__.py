"""The minimal core: hooks, the values that cross them, plugins and their options, discovery, registry, errors."""
