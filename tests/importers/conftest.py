"""The scripts in configs are read by the importers, and must not be imported as tests."""

collect_ignore_glob = ["configs/*"]
