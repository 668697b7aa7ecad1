"""Fine-tune a model from the command line; this script is modelled on TRL's `trl/scripts/sft.py`.

python examples/scripts/sft.py --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct --dataset_name train.jsonl \
    --use_peft --lora_target_modules all-linear --output_dir out

With `--test_split_size 0.1 --eval_strategy epoch`, a tenth of the rows is held back and used for evaluation.
"""

from sftcore import (
    DatasetConfig,
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    SFTConfig,
    SFTTrainer,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)


def main() -> None:
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    script, args, model, mixture = parser.parse_args_and_config()
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "dtype": model.dtype,
        **({"attn_implementation": model.attn_implementation} if model.attn_implementation else {}),
    }
    if script.dataset_name:
        one = DatasetConfig(script.dataset_name, name=script.dataset_config, split=script.dataset_train_split)
        mixture.datasets, mixture.streaming = [one], script.dataset_streaming
    dataset = get_dataset(mixture)
    evaluates = args.eval_strategy != "no"
    trainer = SFTTrainer(
        model.model_name_or_path,
        args,
        train_dataset=dataset["train"],
        eval_dataset=dataset.get("test") if evaluates else None,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.train()
    trainer.save_model(args.output_dir)


if __name__ == "__main__":
    main()
