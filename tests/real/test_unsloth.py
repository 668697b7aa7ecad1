"""Unsloth itself, in its CPU mode. It must be imported first, so what uses it runs in a process of its own.

On a CPU its models run transformers' own layers, so equal losses show that loading, packing and saving are right, and
nothing of the attention and kernels that Unsloth has for GPUs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tests.conftest import alpaca_rows, make_llama, make_tokenizer

if importlib.util.find_spec("unsloth") is None:
    pytest.skip("unsloth is not installed", allow_module_level=True)
if torch.accelerator.is_available():
    pytest.skip("these compare Unsloth's CPU mode with transformers", allow_module_level=True)

STEPS = {"max_steps": 4, "logging_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "max_length": 64}
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj", "up_proj"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny Llama with its tokenizer, and rows."""
    path = tmp_path_factory.mktemp("unsloth")
    tokenizer = make_tokenizer()
    make_llama(tokenizer, hidden_size=64, intermediate_size=128).save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    rows = "".join(json.dumps(row) + "\n" for row in alpaca_rows(24))
    (path / "rows.jsonl").write_text(rows, encoding="utf-8")
    return path


def run(*command: str, fails: bool = False) -> str:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    output = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, output
    return output


def train(folder: Path, name: str, **recipe) -> tuple[list[float], str]:
    """Train from the command line; the losses, and what was printed."""
    settings = {
        "model": {"name": str(folder / "model"), "dtype": recipe.pop("dtype", "float32")},
        "data": {"train": str(folder / "rows.jsonl")},
        "use_cpu": True, "report_to": "none", "output_dir": str(folder / name), "overwrite_output_dir": True,
        **STEPS, **recipe,
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")
    output = run(sys.executable, "-m", "sftcore", "train", str(path))
    logged = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in logged if "loss" in row], output


def reloaded_logits(path: Path, dtype: str) -> torch.Tensor:
    """What transformers and PEFT alone, in this process, make of a saved model or adapter."""
    from transformers import AutoModelForCausalLM

    assert "unsloth" not in sys.modules
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 19)[None]).logits.float()


def script(folder: Path, body: str, **kwargs) -> str:
    path = folder / "script.py"
    path.write_text(textwrap.dedent(body), encoding="utf-8")
    return run(sys.executable, str(path), str(folder), **kwargs)


def test_on_a_cpu_unsloths_models_run_transformers_own_layers(folder):
    output = script(
        folder,
        """
        import unsloth
        import inspect, sys, torch
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            sys.argv[1] + "/model", max_seq_length=64, dtype=torch.float32, load_in_4bit=False)
        model = FastLanguageModel.get_peft_model(model, r=4, target_modules=["q_proj", "up_proj"])
        base = model.get_base_model().model
        files = {inspect.unwrap(one.forward.__func__).__code__.co_filename for one in base.modules()
                 if type(one).__module__.startswith("transformers.models.llama")}
        assert files and all("transformers/models/llama" in one for one in files), files
        assert type(base.layers[0].self_attn.q_proj).__module__ == "peft.tuners.lora.layer"
        print("all are transformers' own")
        """,
    )
    assert "all are transformers' own" in output


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("packing", [False, True])
def test_full_training_has_the_losses_of_transformers(folder, dtype, packing):
    common = {"dtype": dtype, "packing": packing}
    found, output = train(folder, "unsloth", loader={"unsloth": {"full_finetuning": True}}, **common)
    # the attention that Unsloth leaves its model on a CPU; the fastest one rounds otherwise in bfloat16
    wanted, _ = train(folder, "plain", attention="sdpa", padding_free=False, **common)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-5, atol=0)
    assert found[-1] < found[0]
    assert "loaded by Unsloth" in output
    assert "imported after transformers" not in output
    # Unsloth says that it turns packing off, for TRL; here the rows are packed, and proven to be kept apart
    assert ("packed into 12 blocks" in output) == packing
    assert ("documents are kept apart" in output) == packing
    saved, plain = (reloaded_logits(folder / name, dtype) for name in ("unsloth", "plain"))
    torch.testing.assert_close(saved, plain, rtol=1e-4, atol=1e-4)
    assert (saved - reloaded_logits(folder / "model", dtype)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_trains_and_loads_again_with_transformers_and_peft_alone(folder, dtype):
    losses, output = train(folder, "lora", dtype=dtype, loader="unsloth", adapter={"unsloth-lora": LORA})
    assert losses[-1] < losses[0]
    assert "plugins    format alpaca, collator padded, loader unsloth, adapter unsloth-lora, loss nll" in output
    loaded = script(
        folder,
        f"""
        import sys, torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer
        folder = sys.argv[1]
        base = AutoModelForCausalLM.from_pretrained(folder + "/model", dtype=torch.{dtype})
        ids = torch.arange(3, 19)[None]
        before = base(input_ids=ids).logits
        model = PeftModel.from_pretrained(base, folder + "/lora")
        with torch.no_grad():
            print("moved", float((model(input_ids=ids).logits - before).abs().max()) > 0)
        AutoTokenizer.from_pretrained(folder + "/lora")
        assert "unsloth" not in sys.modules
        """,
    )
    assert "moved True" in loaded
    parity = run(sys.executable, "-m", "sftcore", "parity", str(folder / "lora"))
    assert "error" not in parity.lower()


def test_a_model_of_unsloths_own_trains_like_that_of_transformers(folder):
    output = script(
        folder,
        """
        import unsloth
        import sys, torch
        from datasets import Dataset
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from unsloth import FastLanguageModel
        from sftcore import SFTConfig, SFTTrainer
        from tests.conftest import alpaca_rows

        folder = sys.argv[1]
        names = dict(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])
        rows, own = Dataset.from_list(alpaca_rows(24)), AutoTokenizer.from_pretrained(folder + "/model")

        def losses(model, **settings):
            args = SFTConfig(folder + "/own", max_steps=3, logging_steps=1, per_device_train_batch_size=2,
                             max_length=64, learning_rate=1e-2, use_cpu=True, report_to="none", **settings)
            trainer = SFTTrainer(model, args, train_dataset=rows)
            assert trainer.processing_class.get_vocab() == own.get_vocab()
            trainer.train()
            return trainer, [row["loss"] for row in trainer.state.log_history if "loss" in row]

        for checkpointing in ("unsloth", True, False):
            for packing in (False, True):
                model, _ = FastLanguageModel.from_pretrained(
                    folder + "/model", max_seq_length=64, dtype=torch.float32, load_in_4bit=False)
                model = FastLanguageModel.get_peft_model(model, use_gradient_checkpointing=checkpointing, **names)
                trainer, found = losses(model, packing=packing)
                torch.manual_seed(3407)
                plain = AutoModelForCausalLM.from_pretrained(folder + "/model", dtype=torch.float32)
                torch.manual_seed(3407)
                plain = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", **names))
                _, wanted = losses(plain, packing=packing)
                torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-5, atol=0)
                assert not any("builds all logits" in note for note in trainer.loaded.notes), trainer.loaded.notes
        trainer, _ = losses(model, packing=False)
        trainer.save_model(folder + "/saved")
        model.eval()
        with torch.no_grad():
            torch.save(model(input_ids=torch.arange(3, 19)[None]).logits, folder + "/logits.pt")
        print("all equal")
        """,
    )
    assert "all equal" in output
    trained = torch.load(folder / "logits.pt")
    torch.testing.assert_close(reloaded_logits(folder / "saved", "float32"), trained, rtol=1e-4, atol=1e-4)
    assert (trained - reloaded_logits(folder / "model", "float32")).abs().max() > 0.1


def test_from_python_the_loader_asks_for_the_import_as_the_first_line(folder):
    body = """
        {first}
        import sys
        import transformers
        from datasets import Dataset
        from sftcore import SFTConfig, SFTTrainer
        from tests.conftest import alpaca_rows

        folder = sys.argv[1]
        args = SFTConfig(folder + "/py", max_steps=1, max_length=64, use_cpu=True, report_to="none",
                         plugins={{"loader": "unsloth", "adapter": {{"unsloth-lora": {{"r": 2}}}}}})
        trainer = SFTTrainer(folder + "/model", args, train_dataset=Dataset.from_list(alpaca_rows(8)))
        trainer.train()
    """
    output = script(folder, body.format(first=""), fails=True)
    assert "Unsloth must be imported before transformers" in output
    assert "Make `import unsloth` the script's first line" in output
    output = script(folder, body.format(first="import unsloth"))
    assert "imported after transformers" not in output
    assert "loaded by Unsloth" in output


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"loader": "unsloth"}, "Unsloth loads a model for an adapter, and the run has none"),
        ({"loader": "unsloth", "adapter": "unsloth-lora", "max_length": 4096}, "max_seq_length: 4096"),
        ({"loader": "unsloth", "adapter": "unsloth-lora", "attention": "varlen"}, 'claim the slot "attention"'),
        ({"loader": "unsloth", "adapter": "unsloth-lora", "kernel": "liger"}, 'claim the slot "kernel.r'),
        ({"loader": "unsloth", "adapter": "qlora"}, "Unsloth quantises in its own way, without the adapter qlora"),
        (
            {
                "loader": "unsloth",
                "adapter": {"unsloth-lora": {"offload_checkpoints": True}},
                "gradient_checkpointing_kwargs": {"selective": True},
            },
            "Unsloth's checkpointing recomputes all of a layer",
        ),
        ({"adapter": "unsloth-lora"}, "the model is not loaded by Unsloth. Add loader: unsloth"),
        (
            {"loader": {"unsloth": {"full_finetuning": True}}, "adapter": "unsloth-lora"},
            "full_finetuning and an adapter exclude each other",
        ),
    ],
)
def test_what_cannot_go_with_unsloth_is_refused_before_it_is_imported(folder, recipe, message):
    settings = {"model": str(folder / "model"), "data": str(folder / "rows.jsonl"), "use_cpu": True, **recipe}
    path = folder / "refused.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")
    output = run(sys.executable, "-m", "sftcore", "check", str(path), fails=True)
    assert message in " ".join(output.split())
    assert "Unsloth 20" not in output  # its own first line
