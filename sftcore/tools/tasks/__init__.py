"""Tasks of lm-eval on a finished run."""
