"""The package as its users meet it: it must be installed (`pip install ".[test]"`)."""

import io
import wave

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from sftcore_speech import Speech

from sftcore import RowError, SFTConfig, SFTTrainer
from sftcore.testing import FormatTests

pytest_plugins = "sftcore.testing"

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text if p.type == 'text' else '<|AUDIO|>' }}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RATE = 4000


def recording(samples, pitch=440.0, rate=RATE):
    """The bytes of a tone."""
    buffer = io.BytesIO()
    tone = np.sin(np.arange(samples) * 2 * np.pi * pitch / rate)
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, samples, "NONE", ""))
        file.writeframes((tone * 2**14).astype("<i2").tobytes())
    return buffer.getvalue()


class TestSpeech(FormatTests):
    plugin = Speech
    rows = ({"audio": None, "transcript": "Good morning."},)


@pytest.fixture(scope="module")
def processor():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(["<pad>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<|im_end|>")
    hears = transformers.WhisperFeatureExtractor(
        feature_size=8, sampling_rate=RATE, hop_length=40, chunk_length=1, n_fft=100
    )
    return transformers.Qwen2AudioProcessor(hears, tokenizer, chat_template=TEMPLATE)


@pytest.fixture
def model(processor):
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
    config = transformers.Qwen2AudioConfig(
        audio_config=transformers.Qwen2AudioEncoderConfig(
            num_mel_bins=8, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64, d_model=32,
            max_source_positions=50,
        ),
        text_config=transformers.Qwen2Config(
            **sizes, num_key_value_heads=2, vocab_size=len(processor.tokenizer), max_position_embeddings=512
        ),
        audio_token_index=processor.tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )  # fmt: skip
    return transformers.Qwen2AudioForConditionalGeneration(config)


ROWS = [
    {"audio": recording(2400), "transcript": "A low tone."},
    {"audio": recording(1200, 880.0), "transcript": "A high and short one."},
    {"audio": None, "transcript": "Nothing."},
]


def trainer_of(folder, model, processor, rows, **options):
    settings = {
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1, "bf16": False, "max_steps": 1,
        "learning_rate": 0.0, "per_device_train_batch_size": 3, "dataset_cache": False, "disable_tqdm": True,
        "plugins": {"format": "speech", "collator": "speech"}, "gradient_checkpointing": False, "max_length": 512,
    }  # fmt: skip
    args = SFTConfig(str(folder), **{**settings, **options})
    return SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=processor)


def by_hand(model, processor, rows):
    total, count = 0.0, 0
    for row in rows:
        samples, heard, place = None, {}, ""
        if row["audio"] is not None:
            samples = np.frombuffer(row["audio"][44:], "<i2").astype(np.float32) / 2**15
            heard, place = {"audio": [samples], "sampling_rate": RATE}, "<|AUDIO|>"
        asked = f"<|im_start|>user\n{place}Write down what is said.<|im_end|>\n<|im_start|>assistant\n"
        answer = f"{row['transcript']}<|im_end|>"
        batch = processor(text=[asked + answer], return_tensors="pt", **heard)
        first = batch["input_ids"].shape[1] - len(processor.tokenizer(answer)["input_ids"])
        with torch.no_grad():
            logits = model.eval()(**batch).logits[0, first - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, batch["input_ids"][0, first:], reduction="sum").item()
        count += len(logits)
    return total / count


def test_recordings_and_rows_without_one_have_the_loss_of_the_loop_by_hand(tmp_path, model, processor):
    trainer = trainer_of(tmp_path, model, processor, ROWS)
    trainer.train()
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert loss == pytest.approx(by_hand(trainer.model, processor, ROWS), rel=1e-5)


def test_a_recording_is_never_cut(tmp_path, model, processor):
    whole = trainer_of(tmp_path, model, processor, ROWS[:1]).train_dataset[0]["input_ids"]
    place = processor.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    last = len(whole) - whole[::-1].index(place)
    assert whole.count(place) == 15  # of 60 steps of the encoder's input, which it halves twice
    kept = trainer_of(tmp_path, model, processor, ROWS[:1], completion_only_loss=False, max_length=last)
    assert len(kept.train_dataset[0]["input_ids"]) == last
    rows = [ROWS[2], ROWS[0]]
    cut = trainer_of(tmp_path, model, processor, rows, completion_only_loss=False, max_length=last - 1).data.ledgers[0]
    assert (cut.rows_kept, sum(cut.dropped.values())) == (1, 1)


@pytest.mark.parametrize(
    ("audio", "said"),
    [
        (b"no recording", "row 1: a recording cannot be read"),
        (recording(0), "row 1: a recording has no samples"),
        (recording(800, rate=8000), "row 1: a recording has 8000 samples a second, not the model's 4000"),
        (b"", "row 1: a recording cannot be read"),
    ],
)
def test_a_recording_that_cannot_be_used_names_its_row(tmp_path, model, processor, audio, said):
    with pytest.raises(RowError, match=said):
        trainer_of(tmp_path, model, processor, [ROWS[0], {"audio": audio, "transcript": "?"}])


def test_a_text_model_refuses_recordings_by_name(tmp_path, tiny_model, tiny_processor):
    with pytest.raises(RowError, match="row 0: the rows have audio, and the model reads no audio"):
        trainer_of(tmp_path, tiny_model, tiny_processor, ROWS)
