"""Parity of training and serving: a saved folder, read by plain transformers, against what the run trained with."""

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
class Check:
    """One thing that was looked at: what was found, and how to mend it where it differs."""

    name: str
    state: State
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.detail} {self.fix}".rstrip()


def parity(served: Served, trained: Chat | None = None) -> list[Check]:
    """All checks of a saved folder.

    Args:
        served: the folder, from `read_served`.
        trained: what it is compared with, by default the record of the run that saved it; without any, the folder is
            only checked for contradictions in itself.
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
        stop: the token with which the run's answers end.
    """
    generation = getattr(model, "generation_config", None)
    pad = generation.pad_token_id if generation is not None else None
    rows = getattr(model.config.get_text_config(), "vocab_size", None)
    return chat_of(tokenizer, stop=stop, stop_ids=known_stops(model), pad_id=pad, rows=rows)


def saved_parity(folder: Path, trained: Chat) -> list[Check]:
    """The checks of a folder that a run has just saved."""
    try:
        served = read_served(str(folder))
    except ModelError as error:
        return [Check("tokenizer", "differs", error.what, error.fix)]
    if served.adapter is not None:
        # the base may have fewer rows, and the manifest that says so is written after this
        served = attrs.evolve(served, chat=attrs.evolve(served.chat, rows=trained.rows))
    return parity(served, trained)


# --- The checks -----------------------------------------------------------------------------------------------------
def _template(served: Served, trained: Chat | None) -> Iterator[Check]:
    name, chat = "chat template", served.chat
    if chat.template_sha256 is not None and chat.rendered is None:
        fix = "Take the template of the run."
        refuses = Check(name, "differs", "it refuses a conversation of two questions and answers, or loses words.", fix)
        if trained is None or trained.rendered is not None:
            yield refuses
            return
    if trained is None:
        what = "renders a conversation" if chat.template_sha256 else "there is none"
        yield Check(name, "ok" if chat.template_sha256 else "not checked", what)
        return
    if chat.template_sha256 != trained.template_sha256:
        what = "is missing" if chat.template_sha256 is None else "is another one than in training"
        what = "was added after training" if trained.template_sha256 is None else what
        yield Check(
            name,
            "differs",
            f"{what}{_difference(trained.rendered, chat.rendered)}.",
            "Save the run's tokenizer into the folder again.",
        )
        return
    if chat.rendered != trained.rendered and not (chat.dated or trained.dated):
        what = f"renders otherwise than in training{_difference(trained.rendered, chat.rendered)}."
        yield Check(name, "differs", what, "A special token that it prints was changed: compare tokenizer_config.json.")
        return
    yield Check(name, "ok", "the same text, rendered alike" if chat.template_sha256 else "none, as in training")


def _difference(trained: str | None, served: str | None) -> str:
    """Where two renderings part."""
    if trained is None or served is None or trained == served:
        return ""
    for kind, a, b, c, d in SequenceMatcher(None, trained, served, autojunk=False).get_opcodes():
        if kind != "equal":
            before = trained[max(0, a - 12) : a]
            return f": after {before!r} it writes {served[c:d][:40]!r}, in training {trained[a:b][:40]!r}"
    return ""


def _token_ids(served: Served, trained: Chat | None) -> Iterator[Check]:
    if trained is None:
        yield Check("token ids", "not checked", "there is no record of the run to compare with")
        return
    for probe in trained.probes:
        found = ids_of(served.tokenizer, probe["text"])
        if found != probe["ids"]:
            at = next((i for i, (a, b) in enumerate(zip(found, probe["ids"], strict=False)) if a != b), 0)
            yield Check(
                "token ids",
                "differs",
                f"{probe['text'][:24]!r}… becomes {found[at : at + 4]} at token {at}, in training "
                f"{probe['ids'][at : at + 4]}.",
                "Save the run's tokenizer into the folder again.",
            )
            return
    yield Check("token ids", "ok", f"{len(trained.probes)} texts give the same ids")


def _specials(served: Served, trained: Chat | None) -> Iterator[Check]:
    if trained is None:
        yield Check("special tokens", "not checked", "there is no record of the run to compare with")
        return
    chat = served.chat
    wrong = [
        f"{name} is {chat.specials.get(name)!r}, in training {token!r}"
        for name, token in trained.specials.items()
        if chat.specials.get(name) != token
    ]
    vocabulary = served.tokenizer.get_vocab()
    wrong += [
        f'"{token}" is {vocabulary.get(token)}, in training {index}'
        for token, index in trained.ids.items()
        if vocabulary.get(token) != index
    ]
    if not wrong and chat.added_sha256 != trained.added_sha256:
        wrong = ["the added tokens are not those of the run"]
    if wrong:
        yield Check("special tokens", "differs", f"{'; '.join(wrong)}.", "Save the run's tokenizer there again.")
    else:
        yield Check("special tokens", "ok", ", ".join(f"{name} {token!r}" for name, token in chat.specials.items()))


def _stops(served: Served, trained: Chat | None) -> Iterator[Check]:
    name, chat = "stop token", served.chat
    stop = trained.stop if trained else chat.stop
    if stop is None:
        yield Check(name, "warning", "neither the tokenizer nor the template has a token that ends answers.")
        return
    stop_id = served.tokenizer.get_vocab().get(stop)
    where = "generation_config.json" if served.generation is not None else "config.json"
    wanted = trained.stop_ids if trained else []
    if served.generation is None and wanted:
        yield Check(
            name,
            "differs",
            f"generation_config.json is missing, in which the run stops at {wanted}.",
            "Save it there: model.generation_config.save_pretrained(folder).",
        )
    elif stop_id not in chat.stop_ids:
        yield Check(
            name,
            "differs",
            f'answers end with "{stop}" ({stop_id}), and generation stops at {chat.stop_ids or "nothing"}.',
            f"Put {stop_id} into eos_token_id of {where}.",
        )
    elif lost := [index for index in wanted if index not in chat.stop_ids]:
        yield Check(
            name, "differs", f"generation no longer stops at {lost}.", f"Put them into eos_token_id of {where}."
        )
    else:
        yield Check(name, "ok", f'"{stop}" ({stop_id}) ends answers, and generation stops at {chat.stop_ids}')


def _eos(served: Served) -> Iterator[Check]:
    eos = served.tokenizer.eos_token_id
    known = {*served.chat.stop_ids, *as_list(served.config.get("eos_token_id"))}
    if eos is None or not known:
        yield Check("eos", "not checked", "the tokenizer or the configuration has none")
    elif eos not in known:
        yield Check(
            "eos",
            "differs",
            f'the tokenizer\'s "{served.tokenizer.eos_token}" ({eos}) is not among the stops {sorted(known)}.',
            "Engines that ask the tokenizer stop elsewhere than the others: make them agree.",
        )
    else:
        yield Check("eos", "ok", f'the tokenizer\'s "{served.tokenizer.eos_token}" ({eos}) is one of the stops')


def _padding(served: Served, trained: Chat | None) -> Iterator[Check]:
    stop = (trained.stop if trained else None) or served.chat.stop
    tokenizer_pad, pad_id = served.tokenizer.pad_token_id, served.chat.pad_id
    stop_id = served.tokenizer.get_vocab().get(stop) if stop else None
    if stop_id is not None and stop_id in (tokenizer_pad, pad_id):
        places = {"generation": pad_id, "tokenizer": tokenizer_pad}
        where = " and ".join(name for name, index in places.items() if index == stop_id)
        # where the vocabulary had no other token, the run has said so
        known = trained is not None and trained.pad_id == stop_id
        yield Check(
            "padding",
            "warning" if known else "differs",
            f'"{stop}" ({stop_id}) ends answers, and pads too ({where}).',
            "Set pad_token to another token: whoever trains on masks padding, and unlearns to stop.",
        )
    elif tokenizer_pad is None and pad_id is None:
        yield Check("padding", "ok", "no token pads")
    else:
        yield Check("padding", "ok", f'"{served.tokenizer.pad_token}" ({tokenizer_pad}) pads, generation with {pad_id}')


def _vocabulary(served: Served, trained: Chat | None) -> Iterator[Check]:
    rows, chat = served.chat.rows, served.chat
    if rows is None:
        yield Check("vocabulary", "not checked", "there is no config.json that says how many rows there are")
        return
    # added tokens that nothing uses may have no row (Gemma 3's for images, in its text model)
    used = [*chat.ids.values(), *(chat.probes[0]["ids"] if chat.rendered else [])]
    needed = max([chat.size, *(index + 1 for index in used)])
    if needed > rows:
        yield Check(
            "vocabulary",
            "differs",
            f"the tokenizer needs {needed} rows, the embeddings have {rows}.",
            "This is another model's tokenizer, or the model was not saved after it grew.",
        )
    elif trained and trained.rows is not None and trained.rows != rows:
        yield Check(
            "vocabulary",
            "differs",
            f"the embeddings have {rows} rows, in training {trained.rows}.",
            "Save the model as it was trained.",
        )
    else:
        yield Check("vocabulary", "ok", f"{needed} tokens in use, {rows} rows")


def _bos(served: Served, trained: Chat | None) -> Iterator[Check]:
    bos, chat = served.tokenizer.bos_token, served.chat
    if trained is not None and chat.bos != trained.bos:
        yield Check(
            "bos",
            "differs",
            f'with special tokens "{bos}" begins a conversation {chat.bos["chat"]} times and a text '
            f"{chat.bos['text']} times, in training {trained.bos['chat']} and {trained.bos['text']}.",
            "The template or the tokenizer writes it once too often, or no longer.",
        )
    elif chat.rendered and bos and chat.rendered.startswith(bos * 2):
        yield Check("bos", "differs", f'the template writes "{bos}" twice.', "Take one of the two out of the template.")
    elif chat.bos["chat"] > 1:
        yield Check(
            "bos",
            "warning",
            f'the template writes "{bos}", and the tokenizer adds another to a rendered conversation.',
            "Tokenise what apply_chat_template rendered with add_special_tokens=False.",
        )
    else:
        yield Check("bos", "ok", f"at most one begins a conversation ({bos!r})")


def _adapter(served: Served) -> Iterator[Check]:
    if served.adapter is None:
        return
    base = str(served.adapter.get("base_model_name_or_path") or "")
    local = bool(base) and (base.startswith((".", "/", "~")) or base.count("/") > 1)
    fix = "Set base_model_name_or_path in adapter_config.json."
    if not base:
        yield Check("adapter's base", "differs", "the adapter does not say which base it belongs to.", fix)
    elif local and not Path(base).expanduser().exists():
        yield Check("adapter's base", "differs", f"{base} is not there.", fix)
    else:
        yield Check("adapter's base", "ok", base)
