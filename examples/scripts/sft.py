"""Fine-tune a model from the command line; this script is modelled on TRL's `trl/scripts/sft.py`.

python examples/scripts/sft.py --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct --dataset_name train.jsonl \
    --use_peft --lora_target_modules all-linear --output_dir out

With `--test_split_size 0.1 --eval_strategy epoch`, a tenth of the rows is held back and used for evaluation; 100 holds
back a hundred rows. `sftcore sft` is the same program with the same options.
"""

import sys

import torch

from sftcore import (
    DatasetConfig,
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    SFTConfig,
    SFTCoreError,
    SFTTrainer,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)


def main() -> None:
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    script, args, model, mixture = parser.parse_args_and_config()
    if model.model_name_or_path is None:
        sys.exit("error: no model is named. Add: --model_name_or_path MODEL")

    # What from_pretrained is given: --model_init_kwargs last, so that it can say anything
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "dtype": model.dtype,
        **({"attn_implementation": model.attn_implementation} if model.attn_implementation else {}),
        **(args.model_init_kwargs or {}),
    }

    # The data: `datasets` of a YAML file, or else one data set
    def named(split: str) -> list[DatasetConfig]:
        return [DatasetConfig(script.dataset_name, name=script.dataset_config, split=split)]

    one = script.dataset_name is not None and not mixture.datasets
    streaming = mixture.streaming or script.dataset_streaming
    chosen = named(script.dataset_train_split) if one else mixture.datasets
    dataset = get_dataset(DatasetMixtureConfig(chosen, streaming, mixture.test_split_size))
    evaluates = args.eval_strategy != "no"
    if evaluates and one and "test" not in dataset:
        dataset["test"] = get_dataset(DatasetMixtureConfig(named(script.dataset_test_split), streaming))["train"]
    if evaluates and "test" not in dataset:
        sys.exit("error: there are no evaluation rows. Add --test_split_size 0.1, or leave out --eval_strategy")

    trainer = SFTTrainer(
        model.model_name_or_path,
        args,
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"] if evaluates else None,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    if script.ignore_bias_buffers:
        # DDP copies buffers between processes, and cannot copy boolean ones
        buffers = trainer.model.named_buffers()
        trainer.model._ddp_params_and_buffers_to_ignore = [name for name, one in buffers if one.dtype == torch.bool]
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)


if __name__ == "__main__":
    try:
        main()
    except SFTCoreError as error:
        sys.exit(f"error: {error}")
