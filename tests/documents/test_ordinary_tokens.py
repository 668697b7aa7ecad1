"""The tokens that proofs and trials use have no meaning of their own in a model's code."""

from transformers import ChameleonConfig, LlamaConfig

from sftcore.documents.proof import code_token_ids, ordinary_token_ids


def test_tokens_that_a_configuration_names_alone_or_in_a_list_are_not_ordinary():
    config = LlamaConfig(vocab_size=10, bos_token_id=1, eos_token_id=[2, 3], pad_token_id=None)
    config.visual_indicator_token_ids = [4, 5]  # Ovis2 puts learned vectors in their places
    config.image_token_index = 6
    assert ordinary_token_ids(config) == [0, 7, 8, 9]


def test_codes_of_images_are_not_ordinary():
    words = {"<image>": 1, "IMGIMGAAZ": 2, "<|visual token 000001|>": 3, "word": 4}
    config = ChameleonConfig(vocab_size=6, vocabulary_map=words, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    assert code_token_ids(config) == {2, 3}
    assert ordinary_token_ids(config) == [4, 5]
    assert code_token_ids(LlamaConfig()) == set()
