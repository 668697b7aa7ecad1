"""Names of other tools for settings of the training itself."""

from __future__ import annotations

from sftcore.config.foreign.entry import Foreign, chosen, nothing, only, when_on
from sftcore.config.foreign.values import OPTIMIZERS, SCHEDULES, checkpointing

_METRICS = "report.html and loss.svg in the output folder draw it, and metrics.jsonl holds every logged loss."
_LAUNCH = "It belongs to the command: sftcore train recipe.yaml --nproc N, or accelerate launch for several machines."
_NO_TEXTS = (
    "Evaluations measure; sample_prompts: 5 writes the answers to five evaluation rows beside them (of "
    "sample_max_new_tokens), and the trained model answers with: sftcore chat RUN"
)
_MERGE = "It is a step of its own after training: sftcore merge RUN"
_STAGE = "Supervised fine-tuning is the one stage here."

ENTRIES = (
    # how long, how much at once
    Foreign("lr optimizer.lr base_lr", "learning_rate"),
    Foreign("epochs num_epochs n_epochs max_epochs train_epochs", "num_train_epochs"),
    Foreign("steps max_train_steps num_train_steps train_steps train_iters", "max_steps"),
    Foreign("max_steps_per_epoch", "max_steps", "max_steps counts the steps of the whole run, not those of an epoch.",
            "torchtune"),
    Foreign("micro_batch_size micro_batch train_batch_size per_device_batch_size", "per_device_train_batch_size"),
    Foreign("batch_size", "per_device_train_batch_size",
            "That is the rows of one step on one device; gradient_accumulation_steps multiplies them."),
    Foreign("batch_size", "gradient_accumulation_steps",
            "Axolotl's batch_size is micro_batch_size × gradient_accumulation_steps.", "axolotl"),
    Foreign("eval_batch_size val_batch_size", "per_device_eval_batch_size"),
    Foreign("grad_accum accumulation_steps gradient_accumulation grad_accumulation_steps accumulate_grad_batches "
            "accum_steps grad_acc_steps", "gradient_accumulation_steps"),
    # optimizer and schedule
    Foreign("optimizer optimizer_name optimizer_type optimizer._component_", "optim",
            rule=chosen("optim", OPTIMIZERS)),
    Foreign("optimizer_args optim_kwargs optimizer_kwargs", "optim_args"),
    Foreign("optimizer.weight_decay wd", "weight_decay"),
    Foreign("adam_eps", "adam_epsilon"),
    Foreign("lr_scheduler scheduler lr_schedule scheduler_type lr_scheduler_name lr_scheduler._component_",
            "lr_scheduler_type", rule=chosen("lr_scheduler_type", SCHEDULES)),
    Foreign("scheduler_kwargs lr_scheduler_args", "lr_scheduler_kwargs"),
    Foreign("cosine_min_lr_ratio min_lr_ratio", "lr_scheduler_kwargs.min_lr_rate",
            "It belongs to lr_scheduler_type: cosine_with_min_lr.",
            rule=lambda value: {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs.min_lr_rate": value}),
    Foreign("min_lr", "lr_scheduler_kwargs.min_lr", "It belongs to lr_scheduler_type: cosine_with_min_lr."),
    Foreign("cosine_constant_lr_ratio lr_quadratic_warmup", "", "No schedule here does this; use cosine_with_min_lr."),
    Foreign("warmup_ratio warmup_share warmup_proportion warm_up_ratio warmup_fraction", "warmup_steps",
            "A value below 1 is a share of all steps: warmup_steps: 0.05 warms up over the first twentieth.",
            rule=lambda value: {"warmup_steps": value} if value else {}),
    Foreign("warmup num_warmup_steps lr_warmup_steps lr_scheduler.num_warmup_steps", "warmup_steps",
            "A value below 1 is a share of all steps."),
    Foreign("gradient_clipping max_norm clip_grad_norm grad_clip gradient_clip_val clip_grad max_gradient_norm",
            "max_grad_norm"),
    Foreign("optimizer_in_bwd optim_in_bwd fused_backward_pass", "optimizer_in_backward"),
    Foreign("galore_target_modules apollo_target", "optim_target_modules"),
    Foreign("use_galore", "optim", rule=when_on({"optim": "galore_adamw"})),
    Foreign("use_apollo", "optim", rule=when_on({"optim": "apollo_adamw"})),
    Foreign("use_adam_mini use_badam use_muon use_llama_pro use_lisa lisa_n_layers loraplus_lr_ratio lorap_lr_ratio "
            "loraplus_lr_embedding embedding_lr embedding_lr_scale lr_groups vit_lr aligner_lr", "",
            "No setting here gives parameters learning rates or updates of their own; hand SFTTrainer an optimizer "
            "in Python (optimizers=…)."),
    Foreign("neftune_alpha neft_alpha noisy_embedding_alpha", "neftune_noise_alpha"),
    Foreign("label_smoothing", "label_smoothing_factor"),
    Foreign("random_seed manual_seed random_state", "seed"),
    Foreign("deterministic", "full_determinism"),
    # precision, memory and speed
    Foreign("bfloat16 amp_bf16 use_bf16", "bf16"),
    Foreign("float16 amp use_fp16", "fp16"),
    Foreign("mixed_precision precision", "bf16", "Write bf16: true or fp16: true.",
            rule=lambda value: {str(value).lower(): True} if str(value).lower() in ("bf16", "fp16") else {}),
    Foreign("pure_bf16 bf16_true", "model.dtype", "The weights are then bfloat16: model: {dtype: bfloat16}.",
            rule=when_on({"model.dtype": "bfloat16", "bf16": True})),
    Foreign("use_gradient_checkpointing enable_activation_checkpointing activation_checkpoint "
            "enable_gradient_checkpointing grad_checkpointing grad_checkpoint", "gradient_checkpointing"),
    Foreign("gradient_checkpointing use_gradient_checkpointing", "gradient_checkpointing", "",
            "axolotl unsloth", rule=checkpointing),
    Foreign("disable_gradient_checkpointing", "gradient_checkpointing", "It is the reverse of gradient_checkpointing.",
            rule=when_on({"gradient_checkpointing": False})),
    Foreign("use_reentrant_gc use_reentrant", "gradient_checkpointing_kwargs.use_reentrant"),
    Foreign("enable_activation_offloading offload_activations", "activation_offloading"),
    Foreign("compile use_compile torchcompile", "torch_compile"),
    Foreign("liger use_liger enable_liger_kernel use_liger_kernels", "use_liger_kernel"),
    Foreign("liger_rope", "kernel.liger.rope"),
    Foreign("liger_rms_norm", "kernel.liger.rms_norm"),
    Foreign("liger_layer_norm", "kernel.liger.layer_norm"),
    Foreign("liger_swiglu liger_glu_activation", "kernel.liger.mlp"),
    Foreign("liger_fused_linear_cross_entropy liger_cross_entropy liger_flce", "loss", "Write loss: liger.",
            rule=when_on({"loss": "liger"})),
    Foreign("cut_cross_entropy", "loss", "Write loss: cce.", rule=when_on({"loss": "cce"})),
    Foreign("use_dft_loss enable_dft_loss", "loss", "Write loss: dft.", rule=when_on({"loss": "dft"})),
    Foreign("num_workers dataloader_workers", "dataloader_num_workers"),
    Foreign("cpu no_cuda", "use_cpu"),
    Foreign("device", "use_cpu", "A device is used where there is one; use_cpu: true leaves it.",
            rule=lambda value: {"use_cpu": True} if str(value).lower() == "cpu" else {}),
    Foreign("deepspeed_config deepspeed_config_file ds_config zero_stage", "deepspeed"),
    Foreign("fsdp_transformer_layer_cls_to_wrap", "fsdp_config.transformer_layer_cls_to_wrap"),
    Foreign("fsdp_cpu_offload", "fsdp", "Write offload among the words of fsdp.", rule=when_on({"fsdp": "offload"})),
    Foreign("num_gpus n_gpus n_gpu nproc nproc_per_node num_processes num_machines num_nodes nnodes gpus world_size "
            "main_process_port master_port machine_rank", "", _LAUNCH),
    # evaluations, checkpoints and logs
    Foreign("log_steps log_every log_every_n_steps log_interval logging_interval log_freq", "logging_steps"),
    Foreign("eval_every eval_interval evaluation_steps eval_freq val_check_interval run_val_every_n_steps "
            "eval_every_n_steps", "eval_steps"),
    Foreign("save_every save_interval save_freq checkpoint_every checkpoint_interval save_every_n_steps "
            "checkpointing_steps", "save_steps"),
    Foreign("save_limit max_checkpoints keep_last_n keep_last_n_checkpoints", "save_total_limit"),
    Foreign("save_only_weights", "save_only_model"),
    Foreign("early_stopping patience early_stop_patience early_stop_interval early_stopping_rounds",
            "early_stopping_patience"),
    Foreign("resume checkpoint auto_resume_from_checkpoints ckpt_path resume_checkpoint", "resume_from_checkpoint",
            "auto takes the newest checkpoint of output_dir, if there is one."),
    Foreign("output out output_path save_dir work_dir", "output_dir"),
    Foreign("logging_dir log_dir metric_logger.log_dir", "",
            "Set the environment variable TENSORBOARD_LOGGING_DIR; the default is runs in output_dir."),
    Foreign("plot_loss", "", _METRICS, rule=nothing),
    Foreign("callback", "callbacks"),
    Foreign("eval_max_new_tokens eval_table_size eval_table_max_new_tokens predict_with_generate do_causal_lm_eval "
            "eval_causal_lm_metrics generation_max_length generation_num_beams eval_generation_config", "", _NO_TEXTS),
    Foreign("do_bench_eval bench_dataset", "", "Evaluate the trained model with: sftcore evaluate RUN DATA"),
    # trackers
    Foreign("log_with logger tracker_name metric_logger._component_ trackers", "report_to"),
    Foreign("use_wandb", "report_to", "Write report_to: wandb.", rule=when_on({"report_to": "wandb"})),
    Foreign("use_tensorboard", "report_to", "Write report_to: tensorboard.",
            rule=when_on({"report_to": "tensorboard"})),
    Foreign("use_mlflow", "report_to", "Write report_to: mlflow.", rule=when_on({"report_to": "mlflow"})),
    Foreign("use_comet", "report_to", "Write report_to: comet_ml.", rule=when_on({"report_to": "comet_ml"})),
    Foreign("use_trackio", "report_to", "Write report_to: trackio.", rule=when_on({"report_to": "trackio"})),
    Foreign("use_swanlab", "report_to", "Write report_to: swanlab.", rule=when_on({"report_to": "swanlab"})),
    Foreign("wandb_project swanlab_project mlflow_experiment_name comet_project comet_project_name trackio_project "
            "project_name tracker_project_name wandb_project_name metric_logger.project", "tracker.project"),
    Foreign("wandb_entity wandb_org swanlab_workspace comet_workspace", "tracker.entity"),
    Foreign("wandb_tags swanlab_tags", "tracker.tags"),
    Foreign("wandb_name wandb_run_name swanlab_exp_name swanlab_run_name experiment_name exp_name mlflow_run_name "
            "comet_experiment_name swanlab_experiment_name", "run_name"),
    Foreign("wandb_run_id wandb_mode wandb_watch wandb_log_model wandb_group wandb_run_group swanlab_mode "
            "mlflow_tracking_uri hf_mlflow_log_artifacts swanlab_logdir comet_mode comet_online", "",
            "Set the tracker's own environment variable, such as WANDB_MODE or MLFLOW_TRACKING_URI."),
    Foreign("wandb_api_key swanlab_api_key swanlab_token comet_api_key wandb_token", "",
            "A key does not belong in a recipe: set the tracker's environment variable, such as WANDB_API_KEY, or log "
            "in with its own command."),
    # the hub
    Foreign("hf_token token use_auth_token hf_use_auth_token hub_api_token huggingface_token", "",
            "A token does not belong in a recipe: set HF_TOKEN, or log in with: hf auth login"),
    Foreign("hub_repo hub_repo_id hub_model repo_id", "hub_model_id"),
    Foreign("use_hf use_hf_hub", "", "Models and data come from the Hugging Face Hub, or are local.", rule=nothing),
    # what comes after, and what is always so
    Foreign("save_pretrained_merged merge_and_unload merge_lora merge_adapter save_merged", "", _MERGE),
    Foreign("save_pretrained_gguf push_to_hub_gguf export_gguf quantization_method_gguf", "",
            "GGUF files are made by llama.cpp's convert_hf_to_gguf.py from a merged model: sftcore merge RUN"),
    Foreign("stage rlhf_type train_method rl", "", _STAGE, rule=only("sft", "none", "pt")),
    Foreign("log_peak_memory_stats strict save_config add_version create_checkpoint_symlink check_model report_steps "
            "log_on_each_step", "", "There is nothing to set.", rule=nothing),
)  # fmt: skip
