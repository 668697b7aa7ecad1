"""Methods as users write them in a subclass of a trainer, for either trainer: each is a function of the trainer.

None of them knows which trainer it extends.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch.nn.functional import cross_entropy, kl_div


def add_to_loss(module: Any, args: Any, output: Any) -> None:
    """A forward hook that adds a term, where a loss was computed."""
    if getattr(output, "loss", None) is not None and torch.is_grad_enabled():
        output.loss = output.loss + (output.logits**2).mean()


def halve(parameter: torch.Tensor) -> None:
    """A hook behind the accumulation."""
    parameter.grad.mul_(0.5)  # type: ignore[union-attr]


# --- compute_loss -----------------------------------------------------------------------------------------------------
def alone(base: type, seen: Any) -> dict[str, Any]:
    """Calls the model itself, without labels."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        outputs = model(**{key: value for key, value in inputs.items() if key not in ("labels", "num_tokens")})
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        loss = cross_entropy(logits, targets, reduction="sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    return {"compute_loss": compute_loss}


def of_the_model(base: type, seen: Any) -> dict[str, Any]:
    """Has the model compute its loss."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    return {"compute_loss": compute_loss}


def with_outputs(base: type, seen: Any) -> dict[str, Any]:
    """Adds a term on the logits, and takes the loss from the outputs."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = base.compute_loss(self, model, inputs, True, num_items_in_batch)
        if outputs.get("loss") is not None:  # not with label smoothing
            assert outputs[0] is outputs.loss
        loss = loss + 0.1 * (outputs.logits.float() ** 2).mean()
        return (loss, outputs) if return_outputs else loss

    return {"compute_loss": compute_loss}


def distilled(base: type, seen: Any) -> dict[str, Any]:
    """A teacher's distribution and hidden states, and nothing of the labels."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {**inputs, "output_hidden_states": True}
        loss, outputs = base.compute_loss(self, model, inputs, True, num_items_in_batch)
        teacher = torch.linspace(-1, 1, outputs.logits.shape[-1]).expand_as(outputs.logits).softmax(-1)
        term = kl_div(outputs.logits.log_softmax(-1), teacher, reduction="batchmean")
        loss = 0 * loss + 0.1 * term + (outputs.hidden_states[1] ** 2).mean()
        return (loss, outputs) if return_outputs else loss

    return {"compute_loss": compute_loss}


def penalised(base: type, seen: Any) -> dict[str, Any]:
    """Adds the size of the loss's own gradient."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = base.compute_loss(self, model, inputs, num_items_in_batch=num_items_in_batch)
        if not torch.is_grad_enabled():
            return loss
        weights = [one for one in model.parameters() if one.requires_grad][-3:]
        gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        return loss + sum((one**2).sum() for one in gradients if one is not None)

    return {"compute_loss": compute_loss}


def twice(base: type, seen: Any) -> dict[str, Any]:
    """Looks at the gradient, and goes on with the same loss."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = base.compute_loss(self, model, inputs, num_items_in_batch=num_items_in_batch)
        weight = [one for one in model.parameters() if one.requires_grad][-1]
        found = torch.autograd.grad(loss, [weight], retain_graph=True, allow_unused=True)[0]
        return loss * (1 + (0 if found is None else found.detach().norm()))

    return {"compute_loss": compute_loss}


def unnormalised(base: type, seen: Any) -> dict[str, Any]:
    """Does not hand on what the loss is to be divided by."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return base.compute_loss(self, model, inputs, return_outputs)

    return {"compute_loss": compute_loss}


# --- Others -----------------------------------------------------------------------------------------------------------
def step(base: type, seen: Any) -> dict[str, Any]:
    """A step that does not call ours."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(loss)
        return loss.detach()

    return {"training_step": training_step}


def twofold_step(base: type, seen: Any) -> dict[str, Any]:
    """A step that computes its batch twice."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        first = base.training_step(self, model, dict(inputs), num_items_in_batch)
        return first + base.training_step(self, model, dict(inputs), num_items_in_batch)

    return {"training_step": training_step}


def batches(base: type, seen: Any) -> dict[str, Any]:
    def get_batch_samples(self, epoch_iterator, num_batches, device):
        found = list(islice(epoch_iterator, num_batches))
        return found, self._get_num_items_in_batch(found, device)

    return {"get_batch_samples": get_batch_samples}


def create_optimizer(base: type, seen: Any) -> dict[str, Any]:
    def create_optimizer(self, *args, **kwargs):
        trained = [one for one in self.model.parameters() if one.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.5)
        return self.optimizer

    return {"create_optimizer": create_optimizer}


LOSSES = {one.__name__: one for one in (alone, of_the_model, with_outputs, distilled, penalised, twice, unnormalised)}
OTHERS = {one.__name__: one for one in (step, twofold_step, batches)}
_ALL = {**LOSSES, **OTHERS, "create_optimizer": create_optimizer}


def made_of(*names: str) -> Any:
    """What makes a subclass with these methods, of whichever trainer."""

    def subclass(base: type, seen: Any) -> type:
        for name in names:
            base = type("Mine", (base,), _ALL[name](base, seen))
        return base

    return subclass
