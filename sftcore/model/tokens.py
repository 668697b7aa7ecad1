"""Fits a model to the tokens of its chat template, and finds those that it does not know and will not learn."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sftcore.chat.stops import align_pad, align_stop, rendering, uses_template
from sftcore.chat.template import SpecialTexts
from sftcore.chat.tokens import clones_tokenizer
from sftcore.config.settings.templates import named
from sftcore.core.errors import DataError, ModelError, quoted
from sftcore.model.embeddings import fit_embeddings, make_room, num_rows
from sftcore.model.unwrap import is_peft_model

if TYPE_CHECKING:
    from sftcore.config.sft_config import SFTConfig

_MULTIPLE = 64
"""The rows of the embeddings are rounded up to a multiple of this when a template is cloned, as in TRL."""

_LOOKED_AT = 16
"""How many rows are searched for the label that ends an answer."""


def fit_model(model: Any, tokenizer: Any, args: SFTConfig, new_ids: Sequence[int], rows: Any) -> tuple[str, ...]:
    """Fit a loaded model, before its adapter is added, to its tokenizer; returns notes on what was changed.

    Args:
        model: the model as it was loaded.
        tokenizer: the tokenizer with the run's template and tokens.
        args: the configuration, of which those of templates and tokens are used.
        new_ids: the ids of tokens that are new to the tokenizer.
        rows: the prepared training set; from other data it cannot be known whether the template is used.

    Raises:
        ModelError: the template uses tokens for which the model has no row.
    """
    notes: tuple[str, ...] = ()
    if args.chat_template_path is not None and clones_tokenizer(args.chat_template_path):
        notes = (_cloned(model, tokenizer, args.chat_template_path, new_ids),)
    else:
        notes = _grown(model, tokenizer, args, new_ids)
    notes += _begin(model, tokenizer, args)
    labels = supervised_ids(rows)
    _refuse_without_row(model, tokenizer, labels)
    notes += align_stop(model, tokenizer, labels, eos_is_chosen=args.eos_token is not None)
    return notes + align_pad(model, tokenizer, labels)


def supervised_ids(rows: Any) -> frozenset[int] | None:
    """The ids that the first rows supervise, or None if the rows are a stream or not prepared."""
    from datasets import Dataset

    if not isinstance(rows, Dataset) or "labels" not in rows.column_names:
        return None
    labels = rows[: min(_LOOKED_AT, len(rows))]["labels"]
    return frozenset(int(label) for row in labels for label in row if label >= 0)


def template_tokens(tokenizer: Any) -> dict[str, int]:
    """The special and other added tokens that the template writes around words, with their ids."""
    try:
        text = rendering(tokenizer)
    except DataError:  # the template is for another kind of conversations
        return {}
    found = dict.fromkeys(token.group() for token in SpecialTexts.of(tokenizer).added.finditer(text))
    return {token: tokenizer.convert_tokens_to_ids(token) for token in found}


def untrained_tokens(
    model: Any, tokenizer: Any, new_ids: Collection[int] = (), labels: Collection[int] | None = None
) -> str | None:
    """A warning of template tokens that a model with an adapter neither knows nor trains, with a fix; None without any.

    Args:
        model: the model with its adapter; a model without one trains all its tokens.
        tokenizer: the tokenizer with the run's template.
        new_ids: the ids of tokens that are known to be new.
        labels: the ids that the data supervise, or None if they are not known.
    """
    if not is_peft_model(model) or not uses_template(tokenizer, labels):
        return None
    used = {token: index for token, index in template_tokens(tokenizer).items() if token != tokenizer.bos_token}
    causal = model.get_base_model()
    embeddings, head = causal.get_input_embeddings(), causal.get_output_embeddings()
    unknown = [token for token, index in used.items() if index in new_ids]
    unknown += [token for token in _unlearned(embeddings, used, tokenizer) if token not in unknown]
    ids = sorted(used[token] for token in unknown)
    places = {"their embeddings": embeddings, "their rows of the head": head}
    missing = [what for what, module in places.items() if module is not None and not _trains(module, ids)]
    if not unknown or not missing:
        return None
    named = ", ".join(f'"{token}"' for token in unknown)
    return (
        f"the chat template uses {named}, which the model has not learned, and the adapter does not train "
        f"{' nor '.join(missing)}, so it will hardly learn to read them or to end its turns. "
        f"Fix: {_fix(causal, embeddings, head, ids)}"
    )


def refuse_untrained(model: Any, tokenizer: Any, tokens: Sequence[str]) -> None:
    """Refuse to train an adapter that would leave tokens which the run adds as they are: at random, or at the mean.

    Args:
        model: the model with its adapter; a model without one trains all its tokens.
        tokenizer: the tokenizer with these tokens.
        tokens: those that are new to it.

    Raises:
        ModelError: their embeddings, or their rows of the head, do not train.
    """
    if not tokens or not is_peft_model(model):
        return
    ids = sorted(tokenizer.convert_tokens_to_ids(list(tokens)))
    causal = model.get_base_model()
    embeddings, head = causal.get_input_embeddings(), causal.get_output_embeddings()
    places = {"their embeddings": embeddings, "their rows of the head": head}
    missing = [what for what, module in places.items() if module is not None and not _trains(module, ids)]
    if missing:
        what = f"the adapter does not train {' nor '.join(missing)} of the new tokens {quoted(tokens)}."
        fix = _fix(causal, embeddings, head, ids)
        raise ModelError(what.replace("their ", "the "), where="new_tokens", fix=fix[:1].upper() + fix[1:])


def _cloned(model: Any, tokenizer: Any, source: str, new_ids: Sequence[int]) -> str:
    before = num_rows(model)
    fit_embeddings(model, tokenizer, _MULTIPLE if new_ids else None)
    parts = [f"{len(new_ids)} new tokens", _growth(before, num_rows(model))]
    return f"chat template cloned from {source}: {', '.join(filter(None, parts))}"


def _grown(model: Any, tokenizer: Any, args: SFTConfig, new_ids: Sequence[int]) -> tuple[str, ...]:
    """Rows of embeddings for new tokens where there are not enough, and what is said of them and of the template."""
    before = num_rows(model)
    if new_ids:
        make_room(model, max(new_ids) + 1)
    growth = _growth(before, num_rows(model))
    added = f"{quoted(tokenizer.convert_ids_to_tokens(new_ids))} new to the tokenizer" if new_ids else ""
    own = named(args.chat_template) if args.chat_template is not None else None
    if own is None:
        return (", ".join(filter(None, [added, growth])),) if new_ids else ()
    ends = f'turns end with "{own.end or tokenizer.eos_token}"'
    return (f"chat template {own.name}: {', '.join(filter(None, [own.source, ends, added, growth]))}",)


def _begin(model: Any, tokenizer: Any, args: SFTConfig) -> tuple[str, ...]:
    """Have model and generation begin with the run's own BOS, where it names one."""
    if args.bos_token is None:
        return ()
    configs = (model.config.get_text_config(), getattr(model, "generation_config", None))
    changed = [one for one in configs if one is not None and one.bos_token_id != tokenizer.bos_token_id]
    for one in changed:
        one.bos_token_id = tokenizer.bos_token_id
    return (f'texts begin with "{args.bos_token}", for the model and its generation too',) if changed else ()


def _growth(before: int, rows: int) -> str:
    return f"embeddings grown from {before:,} to {rows:,} rows, the new ones at the mean" if rows != before else ""


def _refuse_without_row(model: Any, tokenizer: Any, labels: Collection[int] | None) -> None:
    rows = num_rows(model)
    used = template_tokens(tokenizer) if uses_template(tokenizer, labels) else {}
    if tokenizer.eos_token_id is not None:
        used[tokenizer.eos_token] = tokenizer.eos_token_id
    beyond = [f'"{token}" ({index})' for token, index in used.items() if index >= rows]
    if beyond:
        raise ModelError(
            f"the tokenizer has tokens beyond the {rows:,} rows of the model's embeddings: {', '.join(beyond)}.",
            fix="Use the model's own tokenizer, or let it grow: model.resize_token_embeddings(len(tokenizer)).",
        )


def _unlearned(embeddings: Any, used: Mapping[str, int], tokenizer: Any) -> list[str]:
    """Tokens whose row was never trained, because it is close to zero, to the mean, or to another token's row."""
    import torch

    weight = next((one for name, one in embeddings.named_parameters() if one.ndim == 2 and "lora_" not in name), None)
    if weight is None or weight.is_meta or weight.shape[0] <= max(used.values(), default=0):
        return []  # the rows are sharded, or loaded later
    with torch.no_grad():
        every = weight[:: max(1, weight.shape[0] // 4096)].float()
        typical, mean = every.norm(dim=1).median(), every.mean(dim=0)
        added = [index for index in tokenizer.added_tokens_decoder if index < weight.shape[0]]

        def is_untouched(index: int) -> bool:
            row = weight[index].float()
            if row.norm() < 0.1 * typical or (row - mean).norm() < 0.05 * typical:
                return True
            others = weight[[other for other in added if other != index]].float()
            return bool(((others - row).norm(dim=1) < 0.001 * typical).any())

        return [token for token, index in used.items() if is_untouched(index)]


def _trains(module: Any, ids: Iterable[int]) -> bool:
    """Whether the adapter changes these rows of the embeddings or the head."""
    token_adapter = getattr(module, "token_adapter", None)
    if token_adapter is not None:
        chosen = set().union(*token_adapter.token_indices.values())
        return chosen.issuperset(ids)
    return any(parameter.requires_grad for parameter in module.parameters())


def _fix(causal: Any, embeddings: Any, head: Any, ids: Sequence[int]) -> str:
    """The settings to paste, with the model's own names; a tied head follows its embeddings."""
    names = [_name(causal, embeddings)]
    tied = head is None or getattr(head, "weight", None) is getattr(embeddings, "weight", None)
    tied = tied or bool(getattr(causal.config.get_text_config(), "tie_word_embeddings", False))
    if not tied:
        names.append(_name(causal, head))
    listed = ", ".join(f"{name}: {list(ids)}" for name in names)
    shared = " (its weight is shared with the head, and stays shared)" if tied else ""
    return (
        f"give the adapter modules_to_save: [{', '.join(names)}]{shared}, or, with far fewer weights, "
        f"trainable_token_indices: {{{listed}}}."
    )


def _name(causal: Any, module: Any) -> str:
    path: str = next(name for name, one in causal.named_modules() if one is module)
    return path.removesuffix(".base_layer").rpartition(".")[2]
