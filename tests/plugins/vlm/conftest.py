"""Preparations for tiny vision-language models, without their weights."""

import functools

import pytest

from sftcore.config.setup import set_up
from sftcore.core.types import ModelRequest
from sftcore.data.sets import DataPreparation
from sftcore.testing.tiny_vlm import make_processor
from tests.conftest import make_tokenizer


def _preparation(tokenizer, processor, max_length, settings):
    setup = set_up([], {"dataset_cache": False, **settings}, ModelRequest(vision=processor is not None), where="test")
    return DataPreparation(setup, tokenizer, max_length, processor=processor)


@functools.cache
def _processor(family):
    processor = make_processor(family)
    processor.tokenizer.chat_template = processor.chat_template or processor.tokenizer.chat_template
    return processor


@pytest.fixture(scope="session")
def vlm_data():
    def make(family, max_length=1024, **settings):
        processor = _processor(family)
        return _preparation(processor.tokenizer, processor, max_length, settings)

    return make


@pytest.fixture
def text_data():
    return lambda **settings: _preparation(make_tokenizer(), None, 1024, settings)
