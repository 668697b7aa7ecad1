"""Adapters: LoRA, QLoRA and Unsloth's LoRA."""
