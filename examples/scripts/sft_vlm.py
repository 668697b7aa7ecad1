"""Fine-tune a vision-language model on rows with images, modelled on TRL's `examples/scripts/sft_vlm.py`.

python examples/scripts/sft_vlm.py --model_name_or_path HuggingFaceTB/SmolVLM-256M-Instruct --data mllm_demo.json \
    --use_peft --lora_target_modules all-linear --output_dir out

Each row has `messages`, with `<image>` in place of each image, and `images`, a list of paths to the image files.
"""

from dataclasses import dataclass, field
from pathlib import Path

from datasets import load_dataset

from sftcore import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config, get_quantization_config


@dataclass
class Data:
    """The rows to train on."""

    data: str = field(metadata={"help": "A .json, .jsonl or .parquet file, or a data set on the hub."})


def main() -> None:
    parser = TrlParser((Data, SFTConfig, ModelConfig))
    rows, args, model = parser.parse_args_and_config()
    args.model_init_kwargs = {"revision": model.model_revision, "dtype": model.dtype}
    file = Path(rows.data)
    if file.is_file():
        args.image_folder = args.image_folder or str(file.parent)
        builder = "parquet" if file.suffix == ".parquet" else "json"
        dataset = load_dataset(builder, data_files=str(file), split="train")
    else:
        dataset = load_dataset(rows.data, split="train")
    trainer = SFTTrainer(
        model.model_name_or_path,
        args,
        train_dataset=dataset,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.train()
    trainer.save_model(args.output_dir)


if __name__ == "__main__":
    main()
