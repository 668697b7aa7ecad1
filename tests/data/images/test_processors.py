"""What is found out about a processor before the first row: how its images' tokens are known, and what it returns."""

import pickle

import pytest
import torch
from PIL import Image

from sftcore.chat.render import Rendered
from sftcore.core.errors import ModelError, RowError
from sftcore.core.types import Span
from sftcore.data.images.expand import Expander
from sftcore.data.images.processors import BY_ROW, BY_SIZE, facts_of_processor
from sftcore.data.images.whole_row import WholeRows
from sftcore.testing.tiny_vlm import FAMILIES
from sftcore.testing.tiny_vlm import make_processor as make_usual
from tests.plugins.vlm.by_row.builders import FAMILIES as BY_ROW_FAMILIES
from tests.plugins.vlm.by_row.builders import encoded, make_processor

SIZES = {"small": (40, 70), "square": (50, 50), "wide": (200, 30), "large": (300, 280)}
TEXTS = [
    ("{} what?", ["small"]),
    ("Look: {}", ["large"]),
    ("one {} and {} two", ["small", "large"]),
    ("{}{}both", ["square", "square"]),
    ("{}{}{}", ["small", "wide", "large"]),
    ("\n{} \n {}\n{}\n", ["small", "small", "small"]),
    ("é {} <b> {}word", ["wide", "large"]),
]


def sources(names):
    return [{"bytes": encoded(Image.new("RGB", SIZES[name])), "path": None} for name in names]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_whose_images_depend_on_their_size_alone_are_known_by_it(family):
    assert facts_of_processor(make_usual(family)).known == BY_SIZE


@pytest.mark.parametrize("family", BY_ROW_FAMILIES)
def test_rows_of_any_text_have_the_tokens_of_the_processor_and_its_images_their_places(family):
    processor = make_processor(family)
    expander = Expander(processor)
    assert expander.facts.known == BY_ROW
    token = processor.image_token
    ids_of_images = {processor.tokenizer.convert_tokens_to_ids(token)}
    for pattern, names in TEXTS:
        text = pattern.format(*[token] * len(names))
        images = [Image.new("RGB", SIZES[name]) for name in names]
        wanted = processor(text=[text], images=[images], add_special_tokens=False)["input_ids"][0]
        found = expander.expand(Rendered(text, None, False), sources(names))
        encoding = processor.tokenizer(found.text, add_special_tokens=False, return_offsets_mapping=True)
        assert encoding["input_ids"] == wanted, pattern
        inside = [
            any(span.start <= first and last <= span.end for span in found.image_spans)
            for first, last in encoding["offset_mapping"]
        ]
        assert all(within for within, one in zip(inside, wanted, strict=True) if one in ids_of_images), pattern
        outside = "".join(
            piece for piece in [found.text[a.end : b.start] for a, b in zip(
                [Span(0, 0), *found.image_spans], [*found.image_spans, Span(len(found.text), len(found.text))],
                strict=True,
            )]
        )  # fmt: skip
        for words in pattern.split("{}"):
            assert words in outside, pattern


@pytest.mark.parametrize("family", BY_ROW_FAMILIES)
def test_words_that_count_are_the_same_words_afterwards(family):
    processor = make_processor(family)
    token = processor.image_token
    text = f"say {token} now {token}{token} a red dog. more"
    words = ["say ", "now", " a red dog.", " more"]
    spans = tuple(Span(text.index(one), text.index(one) + len(one)) for one in words)
    names = ["small", "large", "square"]
    found = Expander(processor).expand(Rendered(text, spans, False), sources(names))
    assert [found.text[span.start : span.end] for span in found.spans] == words


def test_a_single_image_is_tiled_and_several_are_not_for_one_that_counts_them():
    processor = make_processor("llava_onevision")
    expander = Expander(processor)
    token = processor.image_token
    alone, two = (
        expander.expand(Rendered(token * count, None, False), sources(["large"] * count)).text.count(token)
        for count in (1, 2)
    )
    assert alone > two  # tiles and a whole for one, nothing but the whole for each of two


@pytest.mark.parametrize("family", BY_ROW_FAMILIES)
def test_the_image_processor_is_called_once_for_each_shape_of_row(family, monkeypatch):
    processor = make_processor(family)
    expander = Expander(processor)
    calls = []
    kind = type(processor.image_processor)
    original = kind.__call__

    def counted(self, *args, **kwargs):
        calls.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(kind, "__call__", counted)
    token = processor.image_token
    for number in range(20):
        expander.expand(Rendered(f"{token} number {number} {token}", None, False), sources(["small", "large"]))
    assert len(calls) <= 1


@pytest.mark.parametrize("family", BY_ROW_FAMILIES)
def test_an_expander_is_sent_to_other_processes(family):
    processor = make_processor(family)
    expander = Expander(processor)
    rendered = Rendered(f"a {processor.image_token} b", None, False)
    wanted = expander.expand(rendered, sources(["small"]))
    assert len(pickle.dumps(expander)) < 1_000_000
    assert pickle.loads(pickle.dumps(expander)).expand(rendered, sources(["small"])) == wanted


# --- What processors return -----------------------------------------------------------------------------------------
def test_what_has_an_entry_for_each_token_is_told_from_what_has_one_for_each_image():
    facts = {family: facts_of_processor(make_processor(family)) for family in BY_ROW_FAMILIES}
    assert dict(facts["mllama"].per_token) == {"cross_attention_mask": 0}
    assert [family for family, one in facts.items() if one.by_document] == ["mllama"]
    assert [family for family, one in facts.items() if one.marks_prompt] == ["paligemma"]
    assert set(facts["paligemma"].per_token) == {"token_type_ids"}
    assert not facts["llava_onevision"].per_token
    assert not facts_of_processor(make_usual("gemma3")).marks_prompt


# --- Refusals -------------------------------------------------------------------------------------------------------
def altered(family, **methods):
    processor = make_processor(family)
    processor.__class__ = type("OddProcessor", (type(processor),), methods)
    return processor


def shouting(self, images=None, text=None, **kwargs):
    return super(type(self), self).__call__(images=images, text=[one.upper() for one in text], **kwargs)


def twice(self, images=None, text=None, **kwargs):
    found = super(type(self), self).__call__(images=images, text=text, **kwargs)
    found["input_ids"] = torch.cat([found["input_ids"], found["input_ids"][:, -1:]], 1)
    return found


def never(self, images=None, text=None, **kwargs):
    raise ValueError("no images today\nnor tomorrow")


def flat_alone(self, images=None, text=None, **kwargs):
    if images and isinstance(images[0], list):
        raise ValueError("nested images are not supported")
    return super(type(self), self).__call__(images=images and [images], text=text, **kwargs)


def begun(self, images=None, text=None, **kwargs):
    return super(type(self), self).__call__(images=images, text=["<|im_start|>" + one for one in text], **kwargs)


def one_at_most(self, images=None, text=None, **kwargs):
    if max(map(len, images)) > 1:
        raise ValueError("only one image")
    return super(type(self), self).__call__(images=images, text=text, **kwargs)


@pytest.mark.parametrize(
    ("method", "words"),
    [(twice, "makes other tokens"), (never, "no images today"), (shouting, "makes other tokens|cannot process")],
)
def test_a_processor_that_cannot_be_foretold_is_refused_by_name_and_text_alone_is_not(method, words):
    expander = Expander(altered("llava_onevision", __call__=method))
    assert expander.expand(Rendered("words alone", None, False), []).text == "words alone"
    with pytest.raises(ModelError, match=f"OddProcessor .*({words})") as caught:
        expander.sources([encoded(Image.new("RGB", (40, 70)))])
    assert "\n" not in str(caught.value)
    assert "Resize" not in str(caught.value)


def test_a_row_with_more_images_than_the_processor_takes_is_refused_with_their_number():
    expander = Expander(altered("paligemma", __call__=one_at_most))
    assert expander.expand(Rendered("<image>words", None, False), sources(["small"])).text
    with pytest.raises(RowError, match="the row has 2 images, and OddProcessor takes at most 1 image"):
        expander.expand(Rendered("<image><image>words", None, False), sources(["small", "small"]))


def test_a_processor_that_takes_images_one_after_the_other_gets_them_so():
    processor = altered("llava_onevision", __call__=flat_alone)
    facts = facts_of_processor(processor)
    # it says of two texts' images that they are one row's, and so cannot be used for batches
    assert not facts.nested or facts.refusal
    usual = altered("paligemma", __call__=flat_alone)
    assert not facts_of_processor(usual).nested
    found = Expander(usual).expand(Rendered("<image><image>words", None, False), sources(["small", "small"]))
    assert found.text.endswith("<bos>words\n")


def test_a_processor_that_begins_each_text_begins_those_without_images_too():
    expander = Expander(altered("llava_onevision", __call__=begun))
    assert expander.facts.changes_texts
    found = expander.expand(Rendered("say a word", (Span(4, 5),), False), [])
    assert found.text == "<|im_start|>say a word"
    assert [found.text[span.start : span.end] for span in found.spans] == ["a"]
    # which the tokenizer does where it is asked to
    assert expander.expand(Rendered("say a word", None, True), []).text == "say a word"


def test_what_is_kept_of_images_takes_no_room_for_pixels():
    processor = make_processor("llava_onevision")
    rows = WholeRows(processor, "<image>")
    for width in range(40, 140):
        rows("<image> a", [(width, 60)])
    assert rows._images._bytes < 1_000_000
