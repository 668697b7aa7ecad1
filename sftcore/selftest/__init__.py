"""`sftcore selftest`: a run with every feature, compared with plain transformers."""
