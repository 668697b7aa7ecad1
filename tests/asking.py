"""Asking a model with a bound loss for that loss, as the trainer does."""

import torch

from sftcore.model.bound_loss import REQUEST, LossRequest


def ask(model, num_items, weights=None, *, labels, **inputs):
    """The scalars of the loss of `labels`, divided by `num_items`; `inputs` are the model's own."""
    request = LossRequest(labels, torch.as_tensor(num_items), weights)
    return request.exact(model(**inputs, **{REQUEST: request}))
