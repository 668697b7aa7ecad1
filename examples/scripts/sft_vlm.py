"""Fine-tune a vision-language model on rows with images, modelled on TRL's `examples/scripts/sft_vlm.py`.

python examples/scripts/sft_vlm.py --model_name_or_path HuggingFaceTB/SmolVLM-256M-Instruct --data mllm_demo.json \
    --use_peft --lora_target_modules all-linear --output_dir out

Each row has `messages`, with `<image>` in place of each image, and `images`, a list of paths to the image files, which
begin in the folder of the data file. With `--own_collator` the rows are batched by the class below, as they are.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, ProcessorMixin

from sftcore import (
    DatasetConfig,
    DatasetMixtureConfig,
    ModelConfig,
    SFTConfig,
    SFTCoreError,
    SFTTrainer,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)


@dataclass
class Data:
    """The rows to train on, and those to evaluate on."""

    data: str = field(metadata={"help": "A .json, .jsonl or .parquet file, or a data set on the hub."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    test_split_size: float | None = field(
        default=None, metadata={"help": "Share or number of the training rows to evaluate on instead."}
    )
    own_collator: bool = field(default=False, metadata={"help": "Batch the rows with the collator of this script."})


class Collator:
    """Rows as a batch, made with nothing but the model's processor: the loss is on all that is not padding or image.

    A collator of one's own gets the rows as they are in the data, so whatever a model needs can be done here.
    """

    def __init__(self, processor: ProcessorMixin, folder: Path) -> None:
        self.processor, self.folder = processor, folder

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts = [self.processor.apply_chat_template(self._turns(row), tokenize=False) for row in rows]
        images = [[self._image(one) for one in row["images"]] for row in rows]
        batch = self.processor(text=texts, images=images, padding=True, return_tensors="pt")
        labels = batch["input_ids"].clone()
        unlearnt = [self.processor.tokenizer.pad_token_id, getattr(self.processor, "image_token_id", None)]
        for token in unlearnt:
            if token is not None:
                labels[labels == token] = -100
        return {**batch, "labels": labels}

    def _turns(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """The turns with parts of text and images, which templates of vision-language models read."""
        return [{"role": turn["role"], "content": self._parts(turn["content"])} for turn in row["messages"]]

    def _parts(self, text: str) -> list[dict[str, str]]:
        first, *rest = text.split("<image>")
        parts = [{"type": "text", "text": first}]
        for piece in rest:
            parts += [{"type": "image"}, {"type": "text", "text": piece}]
        return [part for part in parts if part.get("text") != ""]

    def _image(self, image: Any) -> Image.Image:
        return Image.open(self.folder / image).convert("RGB") if isinstance(image, str) else image.convert("RGB")


def main() -> None:
    parser = TrlParser((Data, SFTConfig, ModelConfig))
    rows, args, model = parser.parse_args_and_config()
    if model.model_name_or_path is None:
        sys.exit("error: no model is named. Add: --model_name_or_path MODEL")
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "dtype": model.dtype,
        **({"attn_implementation": model.attn_implementation} if model.attn_implementation else {}),
        **(args.model_init_kwargs or {}),
    }

    folder = Path(args.image_folder or (Path(rows.data).parent if Path(rows.data).is_file() else "."))
    args.image_folder = str(folder)

    def load(split: str, test_split_size: float | None = None) -> Any:
        one = DatasetConfig(rows.data, name=rows.dataset_config, split=split)
        return get_dataset(DatasetMixtureConfig([one], test_split_size=test_split_size))

    evaluates = args.eval_strategy != "no"
    dataset = load(rows.dataset_train_split, rows.test_split_size)
    if evaluates and "test" not in dataset:
        dataset["test"] = load(rows.dataset_test_split)["train"]

    collator = None
    if rows.own_collator:
        trust, revision = args.trust_remote_code, model.model_revision
        where = model.model_name_or_path
        collator = Collator(AutoProcessor.from_pretrained(where, revision=revision, trust_remote_code=trust), folder)
    trainer = SFTTrainer(
        model.model_name_or_path,
        args,
        data_collator=collator,
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"] if evaluates else None,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=rows.data)


if __name__ == "__main__":
    try:
        main()
    except SFTCoreError as error:
        sys.exit(f"error: {error}")
