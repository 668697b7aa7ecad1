"""The loss inside the model's own forward, where the head sees supervised positions only.

It stays there for as long as a call lasts, and answers only calls that carry a `LossRequest`; every other call
(generation, a user's own) goes to the model's own forward untouched. Nothing here holds the model: everything is found
through the `self` of the call, so that a copy of a model computes with the copy's weights. docs/architecture.md says
why (decision 3).

Shapes: B rows, T tokens, W width, V vocabulary, N supervised positions.
"""

from __future__ import annotations

import copy
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import define, field

from sftcore.core.errors import ModelError, SFTCoreError
from sftcore.core.types import LossFunction, LossOutput
from sftcore.data.host_facts import supervised_positions
from sftcore.losses.loss_call import LossCall, computing
from sftcore.model.embeddings import num_rows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

REQUEST = "sft_request"
"""The keyword argument that asks the model's forward for the loss: a `LossRequest`."""
TOKEN_LOSSES = "token_losses"
"""What of an answer is not a scalar: the loss of each token times its weight, (N,) float32, where the loss has them."""
_TRIAL = "sft_trial"
_SUMMED = ("loss", "aux_loss")
"""Those of the answer's scalars that carry gradients."""
_ATTRIBUTES = _BOUND, _OWN, _ = "_sftcore_loss", "_sftcore_own_forward", "forward"


@define(eq=False)
class LossRequest:
    """What one call asks of the model's forward, and what it answered.

    It is one object and not tensors among the arguments, because what wraps a model casts or moves those: FSDP in
    bfloat16 would round normaliser and weights on the way in, and the loss on the way out. It leaves objects alone.

    labels: (B, T) int64; weights: (B, T) float32, or None; num_items: () float32, what the loss is divided by;
    positions: (N,) int64, row * T + column of each token whose next token counts, None where they are still to be
    found, for which the host waits; whole: whether the model's own outputs are wanted, with all logits; inputs: the
    model's other arguments, for losses that ask for them; found: the answer, detached.
    """

    labels: torch.Tensor
    num_items: torch.Tensor
    weights: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    whole: bool = False
    inputs: Mapping[str, Any] = field(factory=dict)
    found: dict[str, torch.Tensor] = field(factory=dict, init=False)

    def answer(self, found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Keep this answer exactly; returns what carries its gradients, for whatever wraps the model to see."""
        self.found = {name: one.detach() for name, one in found.items()}
        return {name: one for name, one in found.items() if name in _SUMMED}

    def exact(self, seen: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The answer with the gradients of `seen`, which may have been rounded on the way."""
        rounded = {name: one for name, one in seen.items() if one.dtype != self.found[name].dtype}
        kept = {name: one + (self.found[name] - one.detach()) for name, one in rounded.items()}
        return {**self.found, **seen, **kept}


@define(eq=False)
class BoundLoss:
    """A loss function that a causal model computes in its forward.

    The head is applied to gathered hidden states where the result equals the model's own logits; `reason` says why it
    is not, empty where it is, None as long as that was not tried. Then the model's own forward builds all logits, and
    the loss gathers from those.
    """

    loss: LossFunction
    reason: str | None = None
    replaces: SFTCoreError | None = None
    """The error of a run in which this would replace a loss of the model's own that nobody chose to replace."""
    _forward: tuple[Any, Callable[..., Any]] | None = field(default=None, init=False)

    @property
    def gathers(self) -> bool:
        """Whether the head sees supervised positions only."""
        return self.reason == ""

    @property
    def of_model(self) -> bool:
        """Whether the run leaves the loss to the model, and this one is for the metrics alone; see `OwnLoss`."""
        return bool(getattr(self.loss, "of_model", False))

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """Have the causal model answer a `LossRequest` inside; afterwards its forward is what it was."""
        if vars(model).get(_BOUND) is self:
            yield
            return
        before = self.put_on(model)
        try:
            yield
        finally:
            for name in _ATTRIBUTES:
                vars(model).pop(name, None)
            vars(model).update(before)

    def ask(self, model: Any, inputs: Mapping[str, Any], request: LossRequest) -> dict[str, torch.Tensor]:
        """Call the model, wrapped as it is, for its loss; inside `on`.

        Returns:
            Scalars: loss, entropy and correct as in `LossOutput`, supervised (how many tokens counted), and aux_loss
            where the model balances the load of its experts.
        """
        request.inputs = inputs
        return request.exact(model(**inputs, **{REQUEST: request}))

    def ask_whole(self, model: Any, inputs: Mapping[str, Any], request: LossRequest) -> tuple[dict[str, Any], Any]:
        """The same, and the outputs of the model's own forward, with their loss as a call with labels has it.

        What hooks on the model make of that loss is the loss.
        """
        request.whole, request.inputs = True, inputs
        outputs = model(**inputs, **{REQUEST: request})
        if not isinstance(outputs, Mapping):  # of a hook that returns a tuple
            return request.exact({"loss": outputs[0]}), outputs
        return request.exact({name: outputs[name] for name in _SUMMED if name in request.found}), outputs

    def of_outputs(self, outputs: Any, request: LossRequest) -> dict[str, torch.Tensor]:
        """The same from the outputs of a call of the model's own forward, which hold all logits (B, T, V)."""
        found = gathered_loss(self.loss, outputs.logits, _identity, request)
        aux_loss = getattr(outputs, "aux_loss", None)
        return found if aux_loss is None else {**found, "aux_loss": aux_loss}

    def put_on(self, model: PreTrainedModel) -> dict[str, Any]:
        """The same for good; returns what the model had in the place of the attributes that were set."""
        attributes = vars(model)
        before = {name: attributes[name] for name in _ATTRIBUTES if name in attributes}
        if "forward" in attributes:  # such as accelerate's, which casts
            attributes[_OWN] = attributes["forward"]
        # one function for all calls: torch.compile would compile each new one
        kind = type(model), getattr(attributes.get("forward"), "__func__", None)
        if self._forward is None or self._forward[0] != kind:
            self._forward = kind, _with_loss(inspect.signature(model.forward))
        attributes[_BOUND] = self
        attributes["forward"] = types.MethodType(self._forward[1], model)
        return before

    def try_head(self, model: Any, causal: PreTrainedModel, device: torch.device) -> str:
        """Compare head and hidden states with the model's own logits on 16 tokens; sets and returns `reason`.

        Call it as training calls the model: wrapped, on its device, under its autocast, by all processes. Random state
        and training flags stay as they were.

        Args:
            model: what is called, with whatever adapter or sharding is around the causal model.
            causal: the causal model in it.
            device: where its inputs are.

        Raises:
            ModelError: it gives no logits of every token.
        """
        import torch

        ids = torch.arange(3, 19, device=device).remainder(num_rows(causal))[None]
        was_training, self.reason = model.training, ""
        model.eval()
        try:
            with self.on(causal), torch.no_grad(), torch.random.fork_rng(devices=[]):
                model(input_ids=ids, use_cache=False, **{_TRIAL: True})
        except SFTCoreError:
            raise
        except Exception as error:  # kernels, plugins and custom models raise anything
            self.reason = _cannot_be_called(error)
        finally:
            model.train(was_training)
        return self.reason


def bind_loss(model: PreTrainedModel, loss: LossFunction) -> BoundLoss:
    """Try `loss` on a causal model that nothing wraps, and leave it there."""
    bound = BoundLoss(loss)
    bound.try_head(model, model, model.device)
    bound.put_on(model)
    return bound


def _with_loss(own: inspect.Signature) -> Callable[..., Any]:
    """A forward of this signature, which transformers and PEFT read to see which arguments count.

    accelerate unwraps forwards down to the last `__wrapped__`, which this one must not have.
    """
    import torch

    # torch_compile compiles the layers alone: the loss is any plugin's, and gathers other shapes at every step
    as_it_is = torch.compiler.disable
    answer, of_states, of_outputs = map(as_it_is, (LossRequest.answer, gathered_loss, BoundLoss.of_outputs))

    def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        bound: BoundLoss = vars(self)[_BOUND]
        if kwargs.pop(_TRIAL, False):
            outputs, bound.reason = _compare(self, args, kwargs)
            return outputs
        if REQUEST not in kwargs:
            return _own_forward(self)(*args, **kwargs)
        request: LossRequest = kwargs.pop(REQUEST)
        kwargs.pop("labels", None)  # PEFT hands on its own None
        if request.whole:
            outputs = _own_forward(self)(*args, **kwargs)
            return _with_the_loss(outputs, answer(request, of_outputs(bound, outputs, request))["loss"])
        if not bound.gathers:
            return answer(request, of_outputs(bound, _own_forward(self)(*args, **kwargs), request))
        outputs = self.base_model(*args, **kwargs)
        found = of_states(bound.loss, outputs[0], Head(self), request)
        aux_loss = _aux_loss(self, outputs, kwargs)
        return answer(request, found if aux_loss is None else {**found, "aux_loss": aux_loss})

    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = own.replace(parameters=[me, *own.parameters.values()])  # type: ignore[attr-defined]
    return forward


def _with_the_loss(outputs: Any, loss: torch.Tensor) -> Any:
    """The outputs of a call without labels, with a loss where a call with labels has it: first."""
    outputs["loss"] = loss
    outputs.move_to_end("loss", last=False)
    return outputs


def _own_forward(model: PreTrainedModel) -> Callable[..., Any]:
    """The forward beneath the loss: of this very model, also where it is a copy of the one that was bound."""
    own: Callable[..., Any] | None = vars(model).get(_OWN)
    return types.MethodType(type(model).forward, model) if own is None else own


def gathered_loss(
    loss: LossFunction,
    states_BTW: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    request: LossRequest,
) -> dict[str, torch.Tensor]:
    """Gather the positions whose next token counts, and ask the loss.

    States may begin with virtual tokens of prompt learning, which labels and weights do not have.
    """
    labels_BT, weights_BT, positions_N = request.labels, request.weights, request.positions
    width = labels_BT.shape[1]
    if positions_N is None:
        positions_N = supervised_positions(labels_BT, weights_BT)
    labels_N = labels_BT.flatten().index_select(0, positions_N + 1)
    weights_N = None if weights_BT is None else weights_BT.flatten().index_select(0, positions_N + 1)
    device = states_BTW.device  # of a model on several devices: the last one

    def gather(states_BTX: torch.Tensor) -> torch.Tensor:
        places_N = positions_N
        if virtual := states_BTX.shape[1] - width:
            places_N = places_N + (places_N // width + 1) * virtual
        return states_BTX.flatten(0, 1).index_select(0, places_N.to(states_BTX.device))

    with computing(LossCall(request.inputs, gather)):
        output: LossOutput = loss(gather(states_BTW), head, labels_N.to(device), weights_N, request.num_items)
    return {
        "loss": output.loss,
        **({} if output.entropy is None else {"entropy": output.entropy.detach()}),
        "correct": output.correct.detach(),
        "supervised": labels_N.new_full((), len(labels_N)),
        **({} if output.per_token is None else {TOKEN_LOSSES: _times(output.per_token.detach(), weights_N)}),
    }


def _times(losses_N: torch.Tensor, weights_N: torch.Tensor | None) -> torch.Tensor:
    return losses_N if weights_N is None else losses_N * weights_N.to(losses_N)


class Head:
    """The model's output head as a function, with the scale and soft-cap that its configuration names.

    The head is called as a module, so that adapters on it, biases and quantised heads work; a plain one by its weight
    where that is faster.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        config = model.config.get_text_config()
        self._multiply = getattr(config, "logit_scale", None)
        self._divide = getattr(config, "logits_scaling", None)
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)

    @property
    def module(self) -> torch.nn.Module:
        """The head's module as it is now, with whatever an adapter has put around it."""
        found: torch.nn.Module = self._model.get_output_embeddings()
        return found

    @property
    def scale(self) -> float:
        """By what the module's output is multiplied before the soft-cap."""
        return (1.0 if self._multiply is None else self._multiply) / (1.0 if self._divide is None else self._divide)

    def __call__(self, states_NW: torch.Tensor) -> torch.Tensor:
        """(N, W) to (N, V)."""
        from sftcore.model.products.onednn import linear

        logits_NV = linear(self.module, states_NW)
        if self._multiply is not None:
            logits_NV = logits_NV * self._multiply
        if self._divide is not None:
            logits_NV = logits_NV / self._divide
        if self.softcap is not None:
            logits_NV = (logits_NV / self.softcap).tanh() * self.softcap
        return logits_NV


def _aux_loss(model: PreTrainedModel, outputs: Any, kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The auxiliary loss of a mixture of experts, a scalar, as the model's own forward computes it; None without any.

    It comes from the outputs of the base model and the arguments that it got.
    """
    compute: Any = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    asked = getattr(model.config.get_text_config(), "output_router_logits", False)
    # many models can return the logits of their routers, and compute no auxiliary loss from them
    if not asked or compute is None or getattr(outputs, "router_logits", None) is None:
        return getattr(outputs, "aux_loss", None)
    experts = getattr(model, "num_experts", None), getattr(model, "num_experts_per_tok", None)
    mask = kwargs.get("attention_mask")
    # a mask between tokens, as packed rows may need, does not say which tokens are padding
    padding_mask = mask if getattr(mask, "ndim", 0) == 2 else None
    found: torch.Tensor = compute(outputs.router_logits, *experts, padding_mask)
    return found


def _compare(model: PreTrainedModel, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, str]:
    """The model's own outputs, and why the head cannot be applied to gathered hidden states, or an empty text.

    Both ways are called inside one forward, where parameters that are sharded with the whole model are there.
    """
    again = {**kwargs, "past_key_values": copy.deepcopy(kwargs.get("past_key_values"))}  # of prefix tuning
    whole = _own_forward(model)(*args, **kwargs)
    _require_logits(model, whole, kwargs)
    if model.get_output_embeddings() is None or model.base_model is model:
        return whole, "the model has no separate head"
    try:
        inner = model.base_model(*args, **{key: value for key, value in again.items() if value is not None})
        wanted, got = whole.logits[0].float(), Head(model)(inner[0][0]).float()
        aux_losses = [getattr(whole, "aux_loss", None), _aux_loss(model, inner, {})]
        own_aux_loss, aux_loss = (float("nan" if one is None else one) for one in aux_losses)
    except Exception as error:  # as above
        return whole, _cannot_be_called(error)
    tolerance = 1e-4 if min(whole.logits.element_size(), inner[0].element_size()) >= 4 else 2e-2
    gap = float((wanted - got).abs().max()) if wanted.shape == got.shape else float("inf")
    if not gap <= tolerance * max(1.0, float(wanted.abs().max())):
        return whole, f"head and hidden states do not give the model's own logits (they differ by {gap:.2g})"
    if aux_losses != [None, None] and not abs(own_aux_loss - aux_loss) <= tolerance * abs(own_aux_loss):
        return whole, f"its experts' auxiliary loss is {own_aux_loss:.4g}, not {aux_loss:.4g} as of their routers"
    return whole, ""


def _require_logits(model: PreTrainedModel, outputs: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse a model of any class that scores something else than the next token, such as a reward model.

    Raises:
        ModelError: its outputs hold no logits of every token over a vocabulary.
    """
    given = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
    shape = tuple(getattr(getattr(outputs, "logits", None), "shape", ()))
    if len(shape) == 3 and shape[-1] > 1 and (given is None or shape[1] >= given.shape[1]):
        return
    found = f"logits of shape {shape}" if shape else f"a {type(outputs).__name__} without logits"
    raise ModelError(
        f"{type(model).__name__} gives {found} where a causal language model gives logits of every token, of shape "
        "(rows, tokens, vocabulary).",
        where="model",
        fix="Load one: AutoModelForCausalLM.from_pretrained(…).",
    )


def _cannot_be_called(error: Exception) -> str:
    return f"its parts cannot be called one by one ({type(error).__name__}: {error})"


def _identity(logits: torch.Tensor) -> torch.Tensor:
    return logits
