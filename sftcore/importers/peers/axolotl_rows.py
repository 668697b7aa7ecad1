"""Axolotl's data: sources and their formats, what of a row is trained, row length, templates and tokens."""

from __future__ import annotations

from typing import Any

from sftcore.importers.draft import Draft
from sftcore.importers.peers.shared import answers_alone, field, listed, put_sources
from sftcore.importers.peers.templates import template
from sftcore.importers.read.source import Key


def fill(draft: Draft) -> None:
    """Fill in what the configuration says of its rows."""
    _data(draft)
    _length(draft)
    _tokens(draft)


def _data(draft: Draft) -> None:
    if draft.has("pretraining_dataset"):
        draft.left("rows of plain text are data with format: text; a stream needs max_steps", "pretraining_dataset")
    trained: set[str] = set()
    sources: dict[str, list[dict[str, Any]]] = {}
    for key, section in (("datasets", "train"), ("test_datasets", "eval")):
        given = draft.get(key)
        if not isinstance(given, list) or not given:
            continue
        found = [_source(draft, one, (key, i), trained) for i, one in enumerate(given) if isinstance(one, dict)]
        sources[section] = found
    whole = draft.get("train_on_inputs", False)
    for section, found in sources.items():
        if _mixed(trained) and not whole:
            found = [answers_alone(one) for one in found]
        put_sources(draft, found, section=section)
    if whole:
        field(draft, "completion_only_loss", False, "train_on_inputs")
        if "turns" in trained:
            draft.put("assistant_only_loss", False, "train_on_inputs")
    elif _mixed(trained):
        draft.same("it is said by each source", *(k for k in ("train_on_inputs",) if draft.has(k)))
    elif "turns" in trained:
        note = "Axolotl trains the assistant's turns alone; we train whole conversations unless told so"
        draft.put("assistant_only_loss", True, *(k for k in ("train_on_inputs",) if draft.has(k)), note=note)
    elif draft.has("train_on_inputs"):
        draft.same("the loss is on the answers alone", "train_on_inputs")
    tested = draft.get("test_datasets")
    size = draft.get("val_set_size", 0)
    if size and not tested:
        share = float(size) < 1
        draft.put("data.eval_fraction" if share else "data.eval_rows", size if share else int(size), "val_set_size")
    elif draft.has("val_set_size"):
        draft.same("nothing is held back", "val_set_size")
    if (processes := draft.first("dataset_num_proc", "dataset_processes")) and draft.has(processes):
        draft.put("dataset_num_proc", draft.get(processes), processes)


def _mixed(trained: set[str]) -> bool:
    """Whether conversations stand among rows that are texts, which the run's assistant_only_loss refuses."""
    return "turns" in trained and ("texts" in trained or "prompts" in trained)


def _source(draft: Draft, one: dict[str, Any], at: Key, trained: set[str]) -> dict[str, Any]:
    files = one.get("data_files")
    path = files if files and str(one.get("path")) in ("json", "csv", "parquet", "text") else one.get("path")
    path = files if path is None else path
    found: dict[str, Any] = {"path": path, "config": one.get("name"), "format": _format(draft, one, at, trained)}
    if (split := one.get("split")) is not None:
        rows = str(split).removeprefix("train[:").removesuffix("]")
        if str(split).startswith("train[:") and rows.isdigit():
            found["rows"] = int(rows)
        elif split != "train":
            found["split"] = split
    for key in ("path", "data_files", "name", "split"):
        if one.get(key) is not None:
            draft.use("data.train", (*at, key))
    for key in ("ds_type", "trust_remote_code"):
        if one.get(key) is not None:
            draft.same("the kind of a file is seen by its ending, and no code of a data set is run", (*at, key))
    if files and path is not files:
        draft.left("the files of a hub data set are those of its configuration", (*at, "data_files"))
    return found


def _format(draft: Draft, one: dict[str, Any], at: Key, trained: set[str]) -> Any:
    kind = one.get("type")
    used: list[str] = ["type"]
    if isinstance(kind, dict):
        trained.add("prompts")
        return _own_format(draft, kind, at)
    name = str(kind or "").removesuffix(".load")
    options: dict[str, Any] = {}
    made: Any = None
    if name in ("alpaca", "alpaca_instruct", "alpaca:instruct"):
        made = {"alpaca": {"style": "alpaca"}}
        trained.add("prompts")
    elif name == "completion":
        made = {"text": {"field": one.get("field", "text")}}
        used.append("field")
        trained.add("texts")
    elif name == "input_output":
        made = {"segments": {}}
        trained.add("prompts")
    elif name.startswith(("chat_template", "sharegpt", "messages")):
        used += _turns(draft, one, at, options)
        sharegpt = name.startswith("sharegpt")
        column = (
            one.get("field_messages") or one.get("conversation_column") or ("conversations" if sharegpt else "messages")
        )
        if sharegpt or column == "conversations":
            made = {"sharegpt": {**({} if column == "conversations" else {"conversations": column}), **options}}
        else:
            made = {"chat": {**({} if column == "messages" else {"messages": column}), **options}}
        trained.add("turns")
    elif name:
        draft.left(
            f"there is no format {name!r} here: write one that reads these rows (sftcore preview shows them)",
            (*at, "type"),
        )
        return None
    for key in used:
        if one.get(key) is not None:
            draft.use("format", (*at, key))
    return made


def _turns(draft: Draft, one: dict[str, Any], at: Key, options: dict[str, Any]) -> list[str]:
    """Columns, roles and what is trained of a conversation."""
    roles = one.get("roles")
    if isinstance(roles, dict):
        known = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
        said = {str(word): str(role) for role, words in roles.items() for word in listed(words)}
        if changed := {word: role for word, role in said.items() if known.get(word) != role}:
            options["roles"] = changed
        draft.use("format", (*at, "roles"))
    for key in (
        "message_field_role",
        "message_field_content",
        "message_property_mappings",
        "field_tools",
        "conversation",
    ):
        if one.get(key) is not None:
            draft.same("the keys of turns are known by themselves", (*at, key))
    train = one.get("roles_to_train")
    if train is not None:
        usual = set(listed(train)) <= {"assistant", "gpt", "model"}
        (draft.same if usual else draft.left)("the assistant's turns are trained", (*at, "roles_to_train"))
    for key in ("train_on_eos", "train_on_eot"):
        if one.get(key) is not None:
            usual = one[key] == "turn"
            (draft.same if usual else draft.left)("the token that ends a trained turn is trained", (*at, key))
    for key in ("chat_template", "chat_template_jinja"):
        if one.get(key) is not None:
            _template(draft, one[key], (*at, key))
    if one.get("message_field_training") in ("train", "weight", "training"):
        draft.same("a message's own mark is read", (*at, "message_field_training"))
    return ["field_messages"]


def _own_format(draft: Draft, kind: dict[str, Any], at: Key) -> Any:
    """A prompt of the file's own: read as a prompt with its completion where it is the instruction alone."""
    fields = {key: value for key, value in kind.items() if key.startswith("field_")}
    prompt, answer = kind.get("field_instruction", "instruction"), kind.get("field_output", "output")
    plain = str(kind.get("format", "")).replace(" ", "") in ("{instruction}", "") and not kind.get("system_prompt")
    for key in fields:
        draft.use("format", (*at, "type", key))
    words = "the prompt's own words are not put around the columns: write them into the rows"
    for key in kind:
        if key not in fields:
            (draft.same if plain else draft.left)("the instruction alone" if plain else words, (*at, "type", key))
    return {"prompt-completion": {"prompt": prompt, "completion": answer, "separator": ""}}


def _template(draft: Draft, value: Any, *of: str | Key) -> None:
    if str(value).startswith("tokenizer_default"):
        draft.same("the model's own template is used", *of)
    elif str(value) == "jinja":
        draft.same("its text is in chat_template_jinja", *of)
    else:
        template(draft, value, *of)


def _length(draft: Draft) -> None:
    said = [key for key in ("sequence_len",) if draft.has(key)]
    length = draft.get("sequence_len", 512)
    draft.put("max_length", length, *said, note="" if said else "Axolotl's default")
    long_rows = {"drop": "drop", "truncate": "cut", "raise": "refuse"}.get(
        str(draft.get("excess_length_strategy", "drop")).lower(), "drop"
    )
    completion = _has_format(draft, "text")
    if completion and not draft.has("excess_length_strategy"):
        draft.put("long_rows", "split", note="Axolotl's completion splits long texts")
    else:
        keys = [key for key in ("excess_length_strategy",) if draft.has(key)]
        draft.put("long_rows", long_rows, *keys, note="" if keys else "Axolotl drops what is too long")
    packing = bool(draft.get("sample_packing"))
    if packing:
        draft.put("packing", True, "sample_packing")
        if (evaluated := draft.get("eval_sample_packing")) is not None:
            draft.put("eval_packing", evaluated, "eval_sample_packing")
    else:
        draft.same("nothing is packed", *(k for k in ("sample_packing", "eval_sample_packing") if draft.has(k)))
    padded, multiple = draft.get("pad_to_sequence_len"), draft.get("pad_to_multiple_of")
    if padded:
        draft.put("pad_to_multiple_of", length, "pad_to_sequence_len")
        if multiple:
            draft.same("rows are padded to the whole length", "pad_to_multiple_of")
    elif multiple:
        draft.put("pad_to_multiple_of", multiple, "pad_to_multiple_of")
    if draft.has("pad_to_sequence_len") and not padded:
        draft.same("padding never counts", "pad_to_sequence_len")


def _has_format(draft: Draft, name: str) -> bool:
    found = draft.entries.get("format")
    return found is not None and isinstance(found.value, dict) and name in found.value


def _tokens(draft: Draft) -> None:
    given = draft.get("special_tokens")
    for name, value in (given or {}).items():
        key: Key = ("special_tokens", name)
        if name in ("pad_token", "eos_token", "bos_token", "unk_token") and value:
            draft.put(name, value, key)
        elif name == "additional_special_tokens":
            draft.put("new_tokens", listed(value), key)
    if draft.has("special_tokens") and not given:
        draft.same("it says nothing", "special_tokens")
    if tokens := listed(draft.get("tokens")):
        before = draft.entries.get("new_tokens")
        draft.put("new_tokens", [*(before.value if before else []), *tokens], "tokens")
    text = draft.get("chat_template_jinja")
    if text:
        template(draft, text, "chat_template_jinja")
    if draft.has("chat_template"):
        _template(draft, draft.get("chat_template"), "chat_template")
