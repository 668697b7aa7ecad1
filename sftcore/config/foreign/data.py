"""Names of other tools for settings of the data: sources, rows, templates, tokens and what is trained of a row."""

from __future__ import annotations

from sftcore.config.foreign.entry import Foreign, chosen, nothing, share_or_count, when_on
from sftcore.config.foreign.values import LONG_ROWS

_SHARE = share_or_count("data.eval_fraction", "data.eval_rows")
_COUNTS = "It is a share below 1; a number of rows is data.eval_rows."
_CACHE = "The folder of prepared rows is $SFTCORE_CACHE; dataset_cache: false prepares them anew."
_TEMPLATE = "A template's name or text; a .jinja file or another tokenizer is chat_template_path."
_ANSWERS = (
    "The loss on answers alone is completion_only_loss for prompts with completions, as alpaca rows, and "
    "assistant_only_loss for conversations, which train whole without it."
)
_MARKED = (
    "For conversations, assistant_only_loss does it; response_marker finds answers in rows that are texts already."
)
_TURNS = "A row's own turns say it (train: true or false, weight), or trained_turns of the formats chat and sharegpt."
_END = "The token that ends a trained turn is always trained, with mask_style: turn."
_COLUMNS = "Columns and roles are options of the format, such as format: {chat: {messages: conversations}}."

ENTRIES = (
    # sources
    Foreign("datasets dataset dataset_name dataset_path dataset_id dataset_source hf_dataset dataset.source", "data"),
    Foreign("train train_data train_file train_files train_dataset train_path files data_path data_file data_files "
            "training_data dataset.data_files cached_dataset custom_train_dataset_path", "data.train"),
    Foreign("eval eval_data eval_file eval_files eval_dataset eval_datasets val_dataset val_data val_file validation "
            "validation_data validation_file validation_dataset valid_file test_datasets test_dataset test_file "
            "dev_file cached_val_dataset dataset_val", "data.eval"),
    Foreign("val_set_size val_size eval_fraction eval_size test_size test_split_size split_dataset_ratio "
            "validation_split eval_split_ratio validation_split_percentage eval_ratio val_ratio", "data.eval_fraction",
            _COUNTS, rule=_SHARE),
    Foreign("max_samples max_train_samples num_samples max_rows num_train_samples n_samples max_examples",
            "data.rows", "It counts the rows of each source, from the first on."),
    Foreign("max_eval_samples eval_samples num_eval_samples eval_rows", "data.eval_rows"),
    Foreign("split dataset_train_split train_split dataset_split train_on_split dataset.split", "data.split"),
    Foreign("dataset_test_split eval_split test_split val_split validation_split_name dataset_eval_split",
            "data.eval_split"),
    Foreign("dataset_config dataset_config_name subset_name dataset_subset", "data.config"),
    Foreign("streaming dataset_streaming stream", "data.streaming"),
    Foreign("stop stopping_strategy mix_strategy", "data.stop",
            "It belongs to a mixture by weight; without weights the sources are read one after another.",
            rule=chosen("data.stop", {"concat": None, "interleave_under": "first", "first_exhausted": "first",
                                      "interleave_over": "all", "all_exhausted": "all", "interleave_once": "all"})),
    Foreign("interleave_probs interleave_prob dataset_weights dataset_mixer mixture_weights data_mixer", "data.train",
            "Each source has a weight of its own: data: [{path: a.jsonl, weight: 2}, {path: b.jsonl, weight: 1}].",
            rule=lambda value: Foreign("interleave_probs").translated(value)),
    Foreign("dataset_dir dataset_info custom_dataset_info", "",
            "Files are named by their paths, under data, with the format that reads them."),
    Foreign("media_dir image_dir images_dir image_root", "image_folder"),
    Foreign("image_max_pixels max_pixels image_min_pixels min_pixels image_size image_resize_algorithm", "",
            "Options of the format resize images: format: {vlm: {max_pixels: 1003520}}, min_pixels, image_size; "
            "max_image_pixels refuses larger ones."),
    # preparation
    Foreign("preprocessing_num_workers dataset_processes num_proc dataset_num_workers preprocess_num_workers "
            "num_preprocessing_workers", "dataset_num_proc"),
    Foreign("overwrite_cache", "dataset_cache", _CACHE, rule=when_on({"dataset_cache": False})),
    Foreign("load_from_cache_file", "dataset_cache", _CACHE, rule=when_on({}, {"dataset_cache": False})),
    Foreign("dataset_prepared_path tokenized_path last_run_prepared_path cache_path", "", _CACHE, rule=nothing),
    Foreign("shuffle dataset_shuffle shuffle_data shuffle_merged_datasets", "shuffle_dataset",
            "Rows are trained in random order in any case (train_sampling_strategy); shuffle_dataset shuffles the data "
            "when they are prepared.", rule=when_on({}, {"train_sampling_strategy": "sequential"})),
    Foreign("disable_shuffling train_dataloader_shuffle curriculum_sampling", "train_sampling_strategy",
            "Write train_sampling_strategy: sequential for the order of the rows."),
    Foreign("text_column text_field dataset_text_column column text_key", "dataset_text_field"),
    Foreign("dataset_format formatting data_format dataset_type prompt_format dataset_style", "format"),
    Foreign("conversation_style conversation_column field_messages message_field_role message_field_content "
            "message_property_mappings roles field_human field_model field_instruction field_output columns "
            "column_map tool_format mapping prompt_column response_column", "", _COLUMNS),
    Foreign("dataset_exact_deduplication deduplicate dedup", "", "sftcore check finds rows that stand twice; no run "
            "removes them."),
    Foreign("min_sample_len min_length", "", "Rows are not left out for being short."),
    # length, packing and padding
    Foreign("sequence_len cutoff_len seq_len seq_length sequence_length block_size max_len model_max_length "
            "max_sequence_length max_input_length max_token_length tokenizer.max_seq_len max_seq_len context_length",
            "max_length", "What becomes of longer rows: long_rows."),
    Foreign("excess_length_strategy truncation_strategy long_sequence_strategy", "long_rows",
            rule=lambda value: {**chosen("long_rows", LONG_ROWS, others=False)(value),
                                **({"truncation_mode": "keep_end"} if value == "left" else {})}),
    Foreign("excess_token_handling truncation_side truncate_side", "truncation_mode",
            rule=chosen("truncation_mode", {"right": "keep_start", "left": "keep_end"}, others=False)),
    Foreign("sample_packing neat_packing multipack pack use_packing packed dataset.packed pack_sequences", "packing"),
    Foreign("eval_sample_packing", "eval_packing"),
    Foreign("sample_packing_bin_size sample_packing_group_size sample_packing_eff_est sample_packing_sequentially "
            "sample_packing_mp_start_method multipack_real_batches packing_num_proc curriculum_bins batch_flattening "
            "eval_batch_flattening", "", "Rows are packed by their tokens (packing, packing_strategy).", rule=nothing),
    Foreign("packing_length packing_seq_len", "max_length"),
    Foreign("pad_to_sequence_len pad_to_max_length", "pad_to_multiple_of",
            "Write pad_to_multiple_of: with the number of max_length."),
    Foreign("group_by_length length_grouped group_texts_by_length", "train_sampling_strategy",
            "Write train_sampling_strategy: group_by_length.",
            rule=when_on({"train_sampling_strategy": "group_by_length"})),
    # what of a row is trained
    Foreign("train_on_inputs train_on_input train_on_prompt train_on_prompts", "completion_only_loss",
            _ANSWERS, rule=when_on({"completion_only_loss": False}, {"completion_only_loss": True})),
    Foreign("mask_prompt mask_prompts mask_inputs only_train_on_completions train_on_completions_only completion_only",
            "completion_only_loss", _ANSWERS),
    Foreign("train_on_responses_only train_only_on_responses responses_only answer_only_loss assistant_only "
            "train_on_assistant_only", "assistant_only_loss", _MARKED),
    Foreign("response_template response_part response_prefix", "response_marker", _MARKED),
    Foreign("response_prefix", "", "It begins what is generated; answers are trained as the rows have them.", "swift"),
    Foreign("instruction_template instruction_part instruction_prefix", "instruction_marker", _MARKED),
    Foreign("mask_history loss_scale roles_to_train last_turn_only message_field_training train_last_turn_only "
            "message_field_training_detail masking_strategy", "", _TURNS),
    Foreign("train_on_eos train_on_eot eot_tokens ignore_eos", "", _END, rule=nothing),
    # templates and tokens
    Foreign("chat_template", "chat_template", _TEMPLATE, "axolotl llamafactory swift trl unsloth"),
    Foreign("template chat_template_name template_name prompt_template prompt_style", "chat_template",
            _TEMPLATE),
    Foreign("chat_template_jinja chat_template_file chat_template_text jinja_template", "chat_template", _TEMPLATE),
    Foreign("system system_message default_system system_text default_system_prompt default_system_message",
            "system_prompt"),
    Foreign("special_tokens", "eos_token", "Each has a key of its own: pad_token, eos_token, bos_token, unk_token.",
            rule=lambda value: dict(value)),
    Foreign("special_tokens.pad_token", "pad_token"),
    Foreign("special_tokens.eos_token eos eot_token end_of_turn_token", "eos_token"),
    Foreign("special_tokens.bos_token bos", "bos_token"),
    Foreign("special_tokens.unk_token unk", "unk_token"),
    Foreign("pad padding_token", "pad_token"),
    Foreign("tokens added_tokens add_tokens add_special_tokens new_special_tokens additional_special_tokens "
            "extra_tokens added_special_tokens special_tokens.additional_special_tokens", "new_tokens",
            "They are trained where modules_to_save or trainable_token_indices say so."),
    Foreign("resize_vocab resize_token_embeddings_to_32x resize_model_vocab added_tokens_overrides "
            "shrink_embeddings", "", "The embeddings grow with new_tokens alone.", rule=nothing),
)  # fmt: skip

OF_A_SOURCE = {
    "dataset": "path", "file": "path", "files": "path", "file_name": "path", "data_files": "path", "train": "path",
    "hf_hub_url": "path", "dataset_name": "path", "id": "path", "dataset_path": "path",
    "fraction": "weight", "proportion": "weight", "probability": "weight", "interleave_prob": "weight",
    "ratio": "weight", "share": "weight", "sampling_weight": "weight",
    "num_samples": "rows", "max_samples": "rows", "limit": "rows", "num_rows": "rows",
    "type": "format", "formatting": "format", "subset": "config", "dataset_config": "config", "label": "name",
}  # fmt: skip
"""Names of other tools for the keys of one source of `data`."""
