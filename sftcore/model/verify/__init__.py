"""What is held of a model without a forward pass: what a loader was asked for, and what a patch left behind."""
