"""ModelConfig, the model's part of a script's command line, and the configurations that scripts make from it."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from sftcore.config.settings.values import wrong_choice, wrong_dtype
from sftcore.core.errors import ConflictError
from sftcore.util.warned import warn

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import BitsAndBytesConfig


class _SameAsDtype(str):
    """What `torch_dtype` reads as where `dtype` alone was given, so that a copy does not take it for a second value."""

    def __deepcopy__(self, memo: Any) -> str:
        return str(self)


@dataclass
class ModelConfig:
    """The model's part of a script's command line; `HfArgumentParser` makes options of its fields."""

    model_name_or_path: str | None = None
    """Hub id or folder."""
    model_revision: str = "main"
    """Branch, tag or commit."""
    dtype: str | None = "float32"
    """auto, bfloat16, float16 or float32."""
    attn_implementation: str | None = None
    """Attention plugin, or transformers' name for one."""
    use_peft: bool = False
    """Make `get_peft_config` return a LoraConfig."""
    lora_r: int = 16
    """Rank."""
    lora_alpha: int = 32
    """Scale."""
    lora_dropout: float = 0.05
    """Dropout on the adapter's input."""
    lora_target_modules: list[str] | None = None
    """Modules to adapt: names, or one text: all-linear, or a regular expression of whole names."""
    lora_target_parameters: list[str] | None = None
    """Parameters to adapt, such as those of experts."""
    lora_modules_to_save: list[str] | None = None
    """Modules trained in full."""
    lora_task_type: str = "CAUSAL_LM"
    """PEFT's task type."""
    use_rslora: bool = False
    """Scale by the square root of the rank (arXiv:2312.03732)."""
    use_dora: bool = False
    """Weight-decomposed LoRA (arXiv:2402.09353)."""
    load_in_8bit: bool = False
    """Quantise the base model to 8 bits."""
    load_in_4bit: bool = False
    """Quantise the base model to 4 bits."""
    bnb_4bit_quant_type: str = "nf4"
    """nf4 or fp4."""
    use_bnb_nested_quant: bool = False
    """Quantise the quantisation constants too."""
    bnb_4bit_quant_storage: str | None = None
    """dtype in which the packed weights are stored."""
    torch_dtype: str | None = None
    """Older name of `dtype`: set one, and both read the same."""

    def __post_init__(self) -> None:
        for name, known in (("bnb_4bit_quant_type", ("nf4", "fp4")), ("lora_task_type", ("CAUSAL_LM",))):
            if error := wrong_choice(name, getattr(self, name), known, "ModelConfig"):
                raise error
        if self.load_in_8bit and self.load_in_4bit:
            raise ConflictError(
                "load_in_8bit and load_in_4bit exclude each other.", where="ModelConfig", fix="Keep one."
            )
        match self.lora_target_modules:
            case [str(text)] if not re.fullmatch(r"[\w.]+", text):
                self.lora_target_modules = text  # type: ignore[assignment]
        object.__setattr__(self, "_made", True)

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep `dtype` and its older name the same, whichever is set, and whenever."""
        if name not in ("dtype", "torch_dtype"):
            object.__setattr__(self, name, value)
            return
        made = "_made" in vars(self)
        if name == "torch_dtype" and (isinstance(value, _SameAsDtype) or (value is None and not made)):
            return
        if error := wrong_dtype(value, "ModelConfig"):
            raise error
        if name == "torch_dtype":
            warn("torch_dtype is now dtype.", FutureWarning)
            if not made and self.dtype not in ("float32", value):
                raise ConflictError(
                    f"dtype and torch_dtype are the same setting, got {self.dtype} and {value}.",
                    where="ModelConfig",
                    fix="Keep dtype.",
                )
        object.__setattr__(self, "dtype", value)
        object.__setattr__(self, "torch_dtype", _SameAsDtype(value) if isinstance(value, str) else value)


def get_peft_config(model_config: ModelConfig) -> PeftConfig | None:
    """The LoraConfig that the model's options describe, or None without `use_peft`, with a warning if there are any."""
    if not model_config.use_peft:
        of_lora = [one for one in fields(ModelConfig) if one.name.startswith(("lora_", "use_rslora", "use_dora"))]
        if given := [one.name for one in of_lora if getattr(model_config, one.name) != one.default]:
            warn(f"{', '.join(given)}: without use_peft there is no adapter, and the model is trained in full.")
        return None
    from peft import LoraConfig

    parameters = model_config.lora_target_parameters
    return LoraConfig(
        task_type=model_config.lora_task_type,
        r=model_config.lora_r,
        lora_alpha=model_config.lora_alpha,
        lora_dropout=model_config.lora_dropout,
        target_modules=model_config.lora_target_modules,
        modules_to_save=model_config.lora_modules_to_save,
        use_rslora=model_config.use_rslora,
        use_dora=model_config.use_dora,
        bias="none",
        **({"target_parameters": parameters} if parameters is not None else {}),
    )


def get_quantization_config(model_config: ModelConfig) -> BitsAndBytesConfig | None:
    """The bitsandbytes configuration that the model's options describe, or None."""
    from transformers import BitsAndBytesConfig

    if model_config.load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=model_config.dtype,
            bnb_4bit_quant_type=model_config.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=model_config.use_bnb_nested_quant,
            bnb_4bit_quant_storage=model_config.bnb_4bit_quant_storage,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if model_config.load_in_8bit else None
