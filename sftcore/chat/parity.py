"""Parity of training and serving: compares a saved folder, as plain transformers reads it, with what was trained."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Literal

import attrs
from attrs import frozen

from sftcore.chat.record import Chat, Served, chat_of, ids_of, read_served
from sftcore.chat.stops import as_list, known_stops
from sftcore.core.errors import ModelError

State = Literal["ok", "differs", "warning", "not checked"]


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
    return [
        *_template(served, trained),
        *_token_ids(served, trained),
        *_specials(served, trained),
        *_stops(served, trained),
        *_eos(served),
        *_padding(served, trained),
        *_vocabulary(served, trained),
        *_bos(served, trained),
        *_adapter(served),
    ]


def record_of(tokenizer: Any, model: Any, stop: str | None) -> Chat:
    """What a run trains with.

    Args:
        tokenizer: of the run.
        model: whose generation configuration is saved.
        stop: the token that ends the run's answers.
    """
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


# --- The checks -----------------------------------------------------------------------------------------------------
def _template(served: Served, trained: Chat | None) -> Iterator[ParityCheck]:
    name, chat = "chat template", served.chat
    if chat.template_sha256 is not None and chat.rendered is None:
        fix = "Use the chat template of the run."
        refuses = ParityCheck(
            name,
            "differs",
            "it refuses a conversation of two questions and answers, or leaves out some of the words.",
            fix,
        )
        if trained is None or trained.rendered is not None:
            yield refuses
            return
    if trained is None:
        what = "it renders a conversation" if chat.template_sha256 else "there is no chat template"
        yield ParityCheck(name, "ok" if chat.template_sha256 else "not checked", what)
        return
    if chat.template_sha256 != trained.template_sha256:
        what = "it is missing" if chat.template_sha256 is None else "it is not the one used in training"
        what = "it was added after training" if trained.template_sha256 is None else what
        yield ParityCheck(
            name,
            "differs",
            f"{what}{_difference(trained.rendered, chat.rendered)}.",
            "Save the run's tokenizer into the folder again.",
        )
        return
    if chat.rendered != trained.rendered and not (chat.dated or trained.dated):
        what = f"it renders differently than in training{_difference(trained.rendered, chat.rendered)}."
        yield ParityCheck(
            name, "differs", what, "A special token that it prints was changed; compare tokenizer_config.json."
        )
        return
    yield ParityCheck(
        name,
        "ok",
        "the same as in training, and it renders the same text" if chat.template_sha256 else "none, as in training",
    )


def _difference(trained: str | None, served: str | None) -> str:
    """Where two renderings begin to differ, in words."""
    if trained is None or served is None or trained == served:
        return ""
    for kind, a, b, c, d in SequenceMatcher(None, trained, served, autojunk=False).get_opcodes():
        if kind != "equal":
            before = trained[max(0, a - 12) : a]
            return f": after {before!r} it writes {served[c:d][:40]!r}, but in training it wrote {trained[a:b][:40]!r}"
    return ""


def _token_ids(served: Served, trained: Chat | None) -> Iterator[ParityCheck]:
    if trained is None:
        yield ParityCheck("token ids", "not checked", "there is no record of the run to compare with")
        return
    for probe in trained.probes:
        found = ids_of(served.tokenizer, probe["text"])
        if found != probe["ids"]:
            at = next((i for i, (a, b) in enumerate(zip(found, probe["ids"], strict=False)) if a != b), 0)
            yield ParityCheck(
                "token ids",
                "differs",
                f"{probe['text'][:24]!r}… becomes {found[at : at + 4]} at token {at}, but in training it became "
                f"{probe['ids'][at : at + 4]}.",
                "Save the run's tokenizer into the folder again.",
            )
            return
    yield ParityCheck("token ids", "ok", f"{len(trained.probes)} texts give the same ids")


def _specials(served: Served, trained: Chat | None) -> Iterator[ParityCheck]:
    if trained is None:
        yield ParityCheck("special tokens", "not checked", "there is no record of the run to compare with")
        return
    chat = served.chat
    wrong = [
        f"{name} is {chat.specials.get(name)!r}, but it was {token!r} in training"
        for name, token in trained.specials.items()
        if chat.specials.get(name) != token
    ]
    vocabulary = served.tokenizer.get_vocab()
    wrong += [
        f'the id of "{token}" is {vocabulary.get(token)}, but it was {index} in training'
        for token, index in trained.ids.items()
        if vocabulary.get(token) != index
    ]
    if not wrong and chat.added_sha256 != trained.added_sha256:
        wrong = ["the added tokens differ from those of the run"]
    if wrong:
        yield ParityCheck(
            "special tokens", "differs", f"{'; '.join(wrong)}.", "Save the run's tokenizer into the folder again."
        )
    else:
        yield ParityCheck(
            "special tokens", "ok", ", ".join(f"{name} {token!r}" for name, token in chat.specials.items())
        )


def _stops(served: Served, trained: Chat | None) -> Iterator[ParityCheck]:
    name, chat = "stop token", served.chat
    stop = trained.stop if trained else chat.stop
    if stop is None:
        yield ParityCheck(name, "warning", "neither the tokenizer nor the template has a token that ends answers.")
        return
    stop_id = served.tokenizer.get_vocab().get(stop)
    where = "generation_config.json" if served.generation is not None else "config.json"
    wanted = trained.stop_ids if trained else []
    if served.generation is None and wanted:
        yield ParityCheck(
            name,
            "differs",
            f"generation_config.json, in which the run set generation to stop at {wanted}, is missing.",
            "Save it there: model.generation_config.save_pretrained(folder).",
        )
    elif stop_id not in chat.stop_ids:
        yield ParityCheck(
            name,
            "differs",
            f'answers end with "{stop}" ({stop_id}), but generation stops at {chat.stop_ids or "no token"}.',
            f"Add {stop_id} to eos_token_id in {where}.",
        )
    elif lost := [index for index in wanted if index not in chat.stop_ids]:
        yield ParityCheck(
            name, "differs", f"generation no longer stops at {lost}.", f"Add them to eos_token_id in {where}."
        )
    else:
        yield ParityCheck(name, "ok", f'"{stop}" ({stop_id}) ends answers, and generation stops at {chat.stop_ids}')


def _eos(served: Served) -> Iterator[ParityCheck]:
    eos = served.tokenizer.eos_token_id
    known = {*served.chat.stop_ids, *as_list(served.config.get("eos_token_id"))}
    if eos is None or not known:
        yield ParityCheck("eos", "not checked", "the tokenizer or the configuration has no EOS")
    elif eos not in known:
        yield ParityCheck(
            "eos",
            "differs",
            f'the tokenizer\'s "{served.tokenizer.eos_token}" ({eos}) is not among the stops {sorted(known)}.',
            "Inference engines that read the tokenizer stop elsewhere than the others; make the two agree.",
        )
    else:
        yield ParityCheck("eos", "ok", f'the tokenizer\'s "{served.tokenizer.eos_token}" ({eos}) is one of the stops')


def _padding(served: Served, trained: Chat | None) -> Iterator[ParityCheck]:
    stop = (trained.stop if trained else None) or served.chat.stop
    tokenizer_pad, pad_id = served.tokenizer.pad_token_id, served.chat.pad_id
    stop_id = served.tokenizer.get_vocab().get(stop) if stop else None
    if stop_id is not None and stop_id in (tokenizer_pad, pad_id):
        places = {"generation": pad_id, "tokenizer": tokenizer_pad}
        where = " and ".join(name for name, index in places.items() if index == stop_id)
        # the run has already said so if the vocabulary had no other token
        known = trained is not None and trained.pad_id == stop_id
        yield ParityCheck(
            "padding",
            "warning" if known else "differs",
            f'"{stop}" ({stop_id}) ends answers, but is used for padding too ({where}).',
            "Set pad_token to another token: further training masks padding, and the model would unlearn to stop.",
        )
    elif tokenizer_pad is None and pad_id is None:
        yield ParityCheck("padding", "ok", "there is no padding token")
    else:
        yield ParityCheck(
            "padding",
            "ok",
            f'the tokenizer pads with "{served.tokenizer.pad_token}" ({tokenizer_pad}), generation with {pad_id}',
        )


def _vocabulary(served: Served, trained: Chat | None) -> Iterator[ParityCheck]:
    rows, chat = served.chat.rows, served.chat
    if rows is None:
        yield ParityCheck(
            "vocabulary", "not checked", "there is no config.json that says how many rows the embeddings have"
        )
        return
    # added tokens that are never used may have no row (such as the image tokens in Gemma 3's text model)
    used = [*chat.ids.values(), *(chat.probes[0]["ids"] if chat.rendered else [])]
    needed = max([chat.size, *(index + 1 for index in used)])
    if needed > rows:
        yield ParityCheck(
            "vocabulary",
            "differs",
            f"the tokenizer needs {needed} rows, but the embeddings have {rows}.",
            "Either this tokenizer belongs to another model, or the model was not saved after its embeddings grew.",
        )
    elif trained and trained.rows is not None and trained.rows != rows:
        yield ParityCheck(
            "vocabulary",
            "differs",
            f"the embeddings have {rows} rows, but had {trained.rows} in training.",
            "Save the model again as it was trained.",
        )
    else:
        yield ParityCheck("vocabulary", "ok", f"{needed} tokens in use, {rows} rows")


def _bos(served: Served, trained: Chat | None) -> Iterator[ParityCheck]:
    bos, chat = served.tokenizer.bos_token, served.chat
    if trained is not None and chat.bos != trained.bos:
        yield ParityCheck(
            "bos",
            "differs",
            f'tokenized with special tokens, a conversation begins with "{bos}" {chat.bos["chat"]} times and a text '
            f"{chat.bos['text']} times; in training it was {trained.bos['chat']} and {trained.bos['text']} times.",
            "The template or the tokenizer writes it too often, or no longer writes it.",
        )
    elif chat.rendered and bos and chat.rendered.startswith(bos * 2):
        yield ParityCheck(
            "bos", "differs", f'the template writes "{bos}" twice.', "Remove one of the two from the template."
        )
    elif chat.bos["chat"] > 1:
        yield ParityCheck(
            "bos",
            "warning",
            f'the template writes "{bos}", and the tokenizer adds another to a rendered conversation.',
            "Tokenize the output of apply_chat_template with add_special_tokens=False.",
        )
    else:
        yield ParityCheck("bos", "ok", f"a conversation begins with at most one ({bos!r})")


def _adapter(served: Served) -> Iterator[ParityCheck]:
    if served.adapter is None:
        return
    base = str(served.adapter.get("base_model_name_or_path") or "")
    local = bool(base) and (base.startswith((".", "/", "~")) or base.count("/") > 1)
    fix = "Set base_model_name_or_path in adapter_config.json."
    if not base:
        yield ParityCheck("adapter's base", "differs", "the adapter does not say which base it belongs to.", fix)
    elif local and not Path(base).expanduser().exists():
        yield ParityCheck("adapter's base", "differs", f"{base} does not exist.", fix)
    else:
        yield ParityCheck("adapter's base", "ok", base)
