"""Parity of training and serving: compares a saved folder, as plain transformers reads it, with what was trained."""

from __future__ import annotations

from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Literal, TypeAlias

import attrs
from attrs import frozen

from sftcore.chat.served.record import Chat, Served, chat_of, ids_of, read_served
from sftcore.chat.stops import as_list, known_stops
from sftcore.core.errors import ModelError

State: TypeAlias = Literal["ok", "differs", "warning", "not checked"]
Result: TypeAlias = tuple[State, str, str]
"""The state of a check, its detail, and how to fix a difference."""

_SAVE_TOKENIZER = "Save the run's tokenizer into the folder again."
_NO_RECORD: Result = "not checked", "there is no record of the run to compare with", ""


@frozen
class ParityCheck:
    """The result of one comparison, and how to fix a difference."""

    name: str
    state: State
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.detail} {self.fix}".rstrip()


def parity(served: Served, trained: Chat | None = None) -> list[ParityCheck]:
    """All checks of a saved folder.

    Args:
        served: the folder, from `read_served`.
        trained: what to compare it with, by default the record of the run that saved it. Without a record, the folder
            is only checked for contradictions within itself.
    """
    trained = trained or served.record
    results = {name: check(served, trained) for name, check in _CHECKS.items()}
    return [ParityCheck(name, *result) for name, result in results.items() if result is not None]


def record_of(tokenizer: Any, model: Any, stop: str | None) -> Chat:
    """What a run trains with; `stop` is the token that ends its answers."""
    generation = getattr(model, "generation_config", None)
    pad = generation.pad_token_id if generation is not None else None
    rows = getattr(model.config.get_text_config(), "vocab_size", None)
    return chat_of(tokenizer, stop=stop, stop_ids=known_stops(model), pad_id=pad, rows=rows)


def saved_parity(folder: Path, trained: Chat) -> list[ParityCheck]:
    """The checks of a folder that a run has just saved."""
    try:
        served = read_served(str(folder))
    except ModelError as error:
        return [ParityCheck("tokenizer", "differs", error.what, error.fix)]
    if served.adapter is not None:
        # the base may have fewer rows, and the manifest that records this is written later
        served = attrs.evolve(served, chat=attrs.evolve(served.chat, rows=trained.rows))
    return parity(served, trained)


# --- The checks ----------------------------------------------------------------------------------------------------
def _template(served: Served, trained: Chat | None) -> Result:
    chat = served.chat
    if chat.template_sha256 is not None and chat.rendered is None and (trained is None or trained.rendered is not None):
        what = "it refuses a conversation of two questions and answers, or leaves out some of the words."
        return "differs", what, "Use the chat template of the run."
    if trained is None:
        known = chat.template_sha256 is not None
        return ("ok", "it renders a conversation", "") if known else ("not checked", "there is no chat template", "")
    where = _difference(trained.rendered, chat.rendered)
    if chat.template_sha256 != trained.template_sha256:
        what = "it is missing" if chat.template_sha256 is None else "it is not the one used in training"
        what = "it was added after training" if trained.template_sha256 is None else what
        return "differs", f"{what}{where}.", _SAVE_TOKENIZER
    if chat.rendered != trained.rendered and not (chat.dated or trained.dated):
        fix = "A special token that it prints was changed; compare tokenizer_config.json."
        return "differs", f"it renders differently than in training{where}.", fix
    same = "the same as in training, and it renders the same text"
    return "ok", same if chat.template_sha256 else "none, as in training", ""


def _difference(trained: str | None, served: str | None) -> str:
    """Where two renderings begin to differ, in words."""
    if trained is None or served is None or trained == served:
        return ""
    codes = SequenceMatcher(None, trained, served, autojunk=False).get_opcodes()
    _, a, b, c, d = next(code for code in codes if code[0] != "equal")
    before = trained[max(0, a - 12) : a]
    return f": after {before!r} it writes {served[c:d][:40]!r}, but in training it wrote {trained[a:b][:40]!r}"


def _token_ids(served: Served, trained: Chat | None) -> Result:
    if trained is None:
        return _NO_RECORD
    for probe in trained.probes:
        text, ids = probe["text"], probe["ids"]
        found = ids_of(served.tokenizer, text)
        if found != ids:
            at = next((i for i, (a, b) in enumerate(zip(found, ids, strict=False)) if a != b), 0)
            becomes = f"{text[:24]!r}… becomes {found[at : at + 4]} at token {at}"
            return "differs", f"{becomes}, but in training it became {ids[at : at + 4]}.", _SAVE_TOKENIZER
    return "ok", f"{len(trained.probes)} texts give the same ids", ""


def _specials(served: Served, trained: Chat | None) -> Result:
    if trained is None:
        return _NO_RECORD
    chat, vocabulary = served.chat, served.tokenizer.get_vocab()
    wrong = [
        f"{name} is {chat.specials.get(name)!r}, but it was {token!r} in training"
        for name, token in trained.specials.items()
        if chat.specials.get(name) != token
    ]
    wrong += [
        f'the id of "{token}" is {vocabulary.get(token)}, but it was {index} in training'
        for token, index in trained.ids.items()
        if vocabulary.get(token) != index
    ]
    if not wrong and chat.added_sha256 != trained.added_sha256:
        wrong = ["the added tokens differ from those of the run"]
    if wrong:
        return "differs", f"{'; '.join(wrong)}.", _SAVE_TOKENIZER
    return "ok", ", ".join(f"{name} {token!r}" for name, token in chat.specials.items()), ""


def _stops(served: Served, trained: Chat | None) -> Result:
    stops = served.chat.stop_ids
    stop, wanted = (trained.stop, trained.stop_ids) if trained else (served.chat.stop, [])
    if stop is None:
        return "warning", "neither the tokenizer nor the template has a token that ends answers.", ""
    stop_id = served.tokenizer.get_vocab().get(stop)
    where = "generation_config.json" if served.generation is not None else "config.json"
    if served.generation is None and wanted:
        what = f"generation_config.json, in which the run set generation to stop at {wanted}, is missing."
        return "differs", what, "Save it there: model.generation_config.save_pretrained(folder)."
    if stop_id not in stops:
        what = f'answers end with "{stop}" ({stop_id}), but generation stops at {stops or "no token"}.'
        return "differs", what, f"Add {stop_id} to eos_token_id in {where}."
    if lost := [index for index in wanted if index not in stops]:
        return "differs", f"generation no longer stops at {lost}.", f"Add them to eos_token_id in {where}."
    return "ok", f'"{stop}" ({stop_id}) ends answers, and generation stops at {stops}', ""


def _eos(served: Served, _: Chat | None) -> Result:
    eos = served.tokenizer.eos_token_id
    known = {*served.chat.stop_ids, *as_list(served.config.get("eos_token_id"))}
    if eos is None or not known:
        return "not checked", "the tokenizer or the configuration has no EOS", ""
    named = f'the tokenizer\'s "{served.tokenizer.eos_token}" ({eos})'
    if eos in known:
        return "ok", f"{named} is one of the stops", ""
    fix = "Inference engines that read the tokenizer stop elsewhere than the others; make the two agree."
    return "differs", f"{named} is not among the stops {sorted(known)}.", fix


def _padding(served: Served, trained: Chat | None) -> Result:
    tokenizer, pad_id = served.tokenizer, served.chat.pad_id
    stop = (trained.stop if trained else None) or served.chat.stop
    stop_id = tokenizer.get_vocab().get(stop)
    places = {"generation": pad_id, "tokenizer": tokenizer.pad_token_id}
    if stop_id is not None and (padded := [name for name, index in places.items() if index == stop_id]):
        # the run has already said so if the vocabulary had no other token
        known = trained is not None and trained.pad_id == stop_id
        what = f'"{stop}" ({stop_id}) ends answers, but is used for padding too ({" and ".join(padded)}).'
        fix = "Set pad_token to another token: further training masks padding, and the model would unlearn to stop."
        return "warning" if known else "differs", what, fix
    if tokenizer.pad_token_id is None and pad_id is None:
        return "ok", "there is no padding token", ""
    pads = f'the tokenizer pads with "{tokenizer.pad_token}" ({tokenizer.pad_token_id}), generation with {pad_id}'
    return "ok", pads, ""


def _vocabulary(served: Served, trained: Chat | None) -> Result:
    rows, chat = served.chat.rows, served.chat
    if rows is None:
        return "not checked", "there is no config.json that says how many rows the embeddings have", ""
    # added tokens that are never used may have no row (such as the image tokens in Gemma 3's text model)
    used = [*chat.ids.values(), *(chat.probes[0]["ids"] if chat.rendered else [])]
    needed = max([chat.size, *(index + 1 for index in used)])
    if needed > rows:
        fix = "Either this tokenizer belongs to another model, or the model was not saved after its embeddings grew."
        return "differs", f"the tokenizer needs {needed} rows, but the embeddings have {rows}.", fix
    if trained and trained.rows is not None and trained.rows != rows:
        what = f"the embeddings have {rows} rows, but had {trained.rows} in training."
        return "differs", what, "Save the model again as it was trained."
    return "ok", f"{needed} tokens in use, {rows} rows", ""


def _bos(served: Served, trained: Chat | None) -> Result:
    bos, chat = served.tokenizer.bos_token, served.chat
    if trained is not None and chat.bos != trained.bos:
        what = (
            f'tokenized with special tokens, a conversation begins with "{bos}" {chat.bos["chat"]} times and a text '
            f"{chat.bos['text']} times; in training it was {trained.bos['chat']} and {trained.bos['text']} times."
        )
        return "differs", what, "The template or the tokenizer writes it too often, or no longer writes it."
    if chat.rendered and bos and chat.rendered.startswith(bos * 2):
        return "differs", f'the template writes "{bos}" twice.', "Remove one of the two from the template."
    if chat.bos["chat"] > 1:
        what = f'the template writes "{bos}", and the tokenizer adds another to a rendered conversation.'
        return "warning", what, "Tokenize the output of apply_chat_template with add_special_tokens=False."
    return "ok", f"a conversation begins with at most one ({bos!r})", ""


def _adapter(served: Served, _: Chat | None) -> Result | None:
    if served.adapter is None:
        return None
    base = str(served.adapter.get("base_model_name_or_path") or "")
    local = base.startswith((".", "/", "~")) or base.count("/") > 1
    fix = "Set base_model_name_or_path in adapter_config.json."
    if not base:
        return "differs", "the adapter does not say which base it belongs to.", fix
    if local and not Path(base).expanduser().exists():
        return "differs", f"{base} does not exist.", fix
    return "ok", base, ""


_CHECKS = {
    "chat template": _template,
    "token ids": _token_ids,
    "special tokens": _specials,
    "stop token": _stops,
    "eos": _eos,
    "padding": _padding,
    "vocabulary": _vocabulary,
    "bos": _bos,
    "adapter's base": _adapter,
}
