import io
import wave
from pathlib import Path
from typing import ClassVar

import attrs
import numpy as np

from sftcore import Example, Message, RowError, hookimpl, plugin
from sftcore.plugin_api import DOCUMENTS, Medium, Modality, facts_of, filler_of, media_features, multiple_of, pad_rows
from sftcore.plugin_api import reference as refer_to
from sftcore.rows import place_media, text_of, value_of


@attrs.frozen
class Audio(Modality):
    """Recordings in WAV files of 16 bits, which the standard library reads."""

    name = "audio"
    argument = "audio"

    def read_by(self, processor):
        return super().read_by(processor) and hasattr(processor, "feature_extractor")

    def refer(self, value, folder, processor):
        if isinstance(value, dict):
            found = (value.get(key) for key in ("audio", "bytes", "path", "url"))
            value = next((one for one in found if one is not None), None)
        if isinstance(value, (str, Path)):
            path = Path(folder) / value
            if not path.is_file():
                raise RowError(f"the recording {path} does not exist.", fix="Correct its path, or drop the row.")
            part = {"path": str(path.resolve())}
        elif isinstance(value, bytes):
            part = {"bytes": value}
        else:
            raise RowError("a recording is neither a path nor bytes.", fix="Fill it in, or drop the row.")
        samples, rate = _read(part)
        wanted = processor.feature_extractor.sampling_rate
        if rate != wanted:
            raise RowError(f"a recording has {rate} samples a second, not the model's {wanted}.", fix="Resample it.")
        return refer_to(self, [part], samples=len(samples), rate=rate)

    def open(self, reference):
        return _read(reference["parts"][0])[0]

    def blank(self, reference):
        return np.zeros(facts_of(reference)["samples"], np.float32)

    def noise(self, reference):
        return np.random.default_rng(0).uniform(-1, 1, facts_of(reference)["samples"]).astype(np.float32)

    def arguments(self, references):
        return {"sampling_rate": facts_of(references[0])["rate"]}


def _read(part):
    """Samples from -1 to 1, float32, and how many of them a second has."""
    try:
        source = part["path"] if part.get("bytes") is None else io.BytesIO(part["bytes"])
        with wave.open(source) as file:
            if (file.getnchannels(), file.getsampwidth()) != (1, 2):
                raise RowError("a recording is not mono with 16 bits.", fix="Convert it, or drop the row.")
            rate, samples = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")
    except (wave.Error, EOFError, OSError) as error:
        raise RowError(f"a recording cannot be read: {error}.", fix="Repair the file, or drop the row.") from error
    if not len(samples):
        raise RowError("a recording has no samples.", fix="Drop the row.")
    return samples.astype(np.float32) / 2**15, rate


@plugin
class Speech:
    """Recordings with a transcript each; the loss is on the transcript."""

    audio: str = "audio"
    transcript: str = "transcript"
    question: str = "Write down what is said."
    media: ClassVar[tuple[str, ...]] = ("audio",)

    @hookimpl
    def detects(self, columns):
        return {self.audio, self.transcript} <= set(columns)

    @hookimpl
    def make_formatter(self, columns):
        def read(row):
            given = [] if row[self.audio] is None else [value_of(row, self.audio)]
            prompt, held = place_media([Message("user", self.question)], given, "audio")
            answer = [Message("assistant", text_of(row, self.transcript))]
            return Example(prompt=prompt, completion=answer, media=[Medium(Audio(), one) for one in held])

        return read


@plugin
class SpeechBatches:
    """Batches of recordings, which are opened when their batch is made."""

    @hookimpl
    def flattens(self):
        return False

    @hookimpl
    def make_collator(self, processor, plan):
        return SpeechCollator(processor, filler_of(processor), multiple_of(plan))


@attrs.frozen
class SpeechCollator:
    """`modalities` says that it takes rows with recordings."""

    processor: object
    pad_token_id: int
    multiple: int
    modalities = {"audio": Audio()}

    def __call__(self, rows):
        batch = pad_rows(rows, pad_token_id=self.pad_token_id, pad_to_multiple_of=self.multiple)
        documents = [{**row[DOCUMENTS][0], "input_ids": row["input_ids"]} for row in rows if DOCUMENTS in row]
        heard = [one for one in documents if one["media"]]
        return {**batch, **media_features(self.processor, heard, self.modalities)}
