"""Liger's real kernels, in Triton's interpreter: the same loss and gradients, on one model and on no other."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy

pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")

import transformers
from sftcore_plugins.kernels.liger import Liger
from sftcore_plugins.losses.liger import LigerLoss
from sftcore_plugins.losses.nll import NLL

from sftcore import ConflictError, LoadedModel, ModelError, ModelRequest, Plan, Selection
from sftcore.config.setup import check, set_up
from sftcore.model.bound_loss import bind_loss
from tests.asking import ask
from tests.model.test_bound_loss import batch, build, gradients, reference

SHAPES = ["Llama", "Qwen3", "Gemma2"]
OFF = {"rope": False, "rms_norm": False, "mlp": False}
pytestmark = pytest.mark.usefixtures("interpreter")


def patched(model, **only):
    report = Liger(**(only or {})).patch_kernels(LoadedModel(model, None), Plan(()))
    return model, report


def loss_of(model, inputs):
    return reference(model, inputs) / 7


def assert_same(found, wanted, got, expected):
    torch.testing.assert_close(found, wanted, atol=0, rtol=1e-5)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-4 * gradient.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kernel", ["rope", "rms_norm", "mlp"])
def test_each_kernel_gives_the_models_own_loss_and_gradients(name, kernel, taught_interpreter):
    model, inputs = build(name), batch()
    wanted = loss_of(model, inputs)
    wanted.backward()
    expected = gradients(model)
    _, report = patched(model, **{**OFF, kernel: True})
    assert len(report.replaced) == 1
    assert not report.skipped, report.skipped
    found = loss_of(model, inputs)
    found.backward()
    assert_same(found, wanted, gradients(model), expected)


@pytest.mark.parametrize("name", [*SHAPES, "Cohere", "Granite", "Phi"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_loss_gives_the_models_own_loss_and_gradients(name, fused, weighted, taught_interpreter):
    model, inputs = build(name), batch()
    weights = torch.rand(inputs["labels"].shape, generator=torch.Generator().manual_seed(2)) if weighted else None
    wanted = reference(model, inputs, weights) / 7
    wanted.backward()
    expected = gradients(model)
    bound = bind_loss(model, LigerLoss(fused=fused).make_loss(loaded=None, plan=Plan(())))
    assert bound.gathers, bound.reason
    found = ask(model, 7.0, weights, **inputs, use_cache=False)
    found["loss"].backward()
    assert_same(found["loss"], wanted, gradients(model), expected)


def test_accuracy_comes_from_the_same_pass_and_entropy_is_left_out():
    model, inputs = build("Llama"), batch()
    bind_loss(copied := copy.deepcopy(model), NLL().make_loss(loaded=None, plan=Plan(())))
    bind_loss(model, LigerLoss().make_loss(loaded=None, plan=Plan(())))
    wanted, found = (ask(one, torch.tensor(7.0), **inputs) for one in (copied, model))
    assert found["correct"] == wanted["correct"]
    assert found["supervised"] == wanted["supervised"]
    assert "entropy" not in found


def test_a_head_that_alone_trains_gets_its_gradient():
    model, inputs = build("Llama"), batch()
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    wanted = reference(model, inputs)
    wanted.backward()
    expected = gradients(model)
    bind_loss(model, LigerLoss().make_loss(loaded=None, plan=Plan(())))
    found = ask(model, torch.tensor(1.0), **inputs)["loss"]
    found.backward()
    assert_same(found, wanted, gradients(model), expected)


@pytest.mark.parametrize("fused", [True, False])
def test_a_batch_without_supervised_tokens_gives_a_zero_that_reaches_every_parameter(fused):
    model, inputs = build("Llama"), batch()
    bind_loss(model, LigerLoss(fused=fused).make_loss(loaded=None, plan=Plan(())))
    inputs = {**inputs, "labels": torch.full_like(inputs["labels"], -100)}
    loss = ask(model, torch.tensor(0.0), **inputs)["loss"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_evaluation_takes_no_gradients():
    model, inputs = build("Llama"), batch()
    wanted = reference(model, inputs)
    bind_loss(model, LigerLoss().make_loss(loaded=None, plan=Plan(())))
    with torch.no_grad():
        found = ask(model, torch.tensor(1.0), **inputs)["loss"]
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=0)
    assert not found.requires_grad


def with_lora(model, **options):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, **options))


def test_a_head_trained_whole_beside_an_adapter_is_read_from_its_trained_copy():
    model, inputs = build("Llama"), batch()
    bind_loss(model, LigerLoss().make_loss(loaded=None, plan=Plan(())))
    wrapped = with_lora(model, target_modules=["q_proj"], modules_to_save=["lm_head"])
    copied = model.get_output_embeddings().modules_to_save["default"]
    torch.nn.init.normal_(copied.weight, std=0.5)
    wanted = reference(wrapped, inputs)
    wanted.backward()
    expected = gradients(wrapped)
    found = ask(wrapped, torch.tensor(1.0), **inputs)["loss"]
    found.backward()
    assert_same(found, wanted, gradients(wrapped), expected)


def test_an_adapter_on_the_head_is_refused_by_the_fused_kernel_and_works_without():
    model, inputs = build("Llama"), batch()
    bind_loss(model, LigerLoss().make_loss(loaded=None, plan=Plan(())))
    wrapped = with_lora(model, target_modules=["lm_head"])
    with pytest.raises(ModelError, match=r"reads the weight of a plain linear layer\. Use loss: \{liger: \{fused"):
        ask(wrapped, torch.tensor(1.0), **inputs)
    other = build("Llama")
    bind_loss(other, LigerLoss(fused=False).make_loss(loaded=None, plan=Plan(())))
    wrapped = with_lora(other, target_modules=["lm_head"])
    torch.nn.init.normal_(other.lm_head.lora_B["default"].weight)
    found = ask(wrapped, torch.tensor(1.0), **inputs)["loss"]
    torch.testing.assert_close(found, reference(wrapped, inputs), rtol=1e-5, atol=0)


def test_a_sharded_or_hooked_head_is_refused():
    model = build("Llama")
    model.lm_head.register_forward_hook(lambda module, args, output: output + 1)
    bind_loss(model, LigerLoss().make_loss(loaded=None, plan=Plan(())))
    with pytest.raises(ModelError, match="with hooks"):
        ask(model, torch.tensor(1.0), **batch())


# --- One model, and nothing else ------------------------------------------------------------------------------------
def shared_names():
    """Every name in transformers' modelling files and torch's functions, with the attributes of their classes."""
    modules = {
        name: one for name, one in sys.modules.items() if name.startswith(("transformers.models.", "torch.nn.f"))
    }
    found = {}
    for name, module in modules.items():
        for key, value in list(vars(module).items()) if type(module) is type(sys) else []:
            found[name, key] = value
            if isinstance(value, type) and value.__module__ == name:
                found |= {(name, key, inner): one for inner, one in vars(value).items()}
            if isinstance(value, dict):
                found |= {(name, key, inner): dict.__getitem__(value, inner) for inner in dict.keys(value)}
    return found


@pytest.mark.parametrize(
    "name", [*SHAPES, "Mixtral", "Granite", "Phi3", "Olmo2", "Gemma3Text", "SmolLM3", "Glm4", "Nemotron"]
)
def test_no_other_model_of_the_process_sees_the_kernels_before_or_after(name, taught_interpreter):
    small = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**small)
    model = transformers.AutoModelForCausalLM.from_config(config)
    before = shared_names()
    keys = [(set(vars(module)), dict(module._modules)) for module in model.modules()]
    _, report = patched(model)
    after = shared_names()
    assert {key for key in before if after.get(key) is not before[key]} == set()
    assert report.replaced
    report.undo()
    assert [(set(vars(module)), dict(module._modules)) for module in model.modules()] == keys


def test_rope_reaches_the_attention_of_this_model_alone():
    from liger_kernel.transformers.rope import liger_rotary_pos_emb
    from transformers.models.llama import modeling_llama

    one, other = build("Llama"), build("Llama")
    _, report = patched(one, **{**OFF, "rope": True})
    assert report.replaced == ("rope of 2 modules",)
    forward = one.model.layers[0].self_attn.forward
    assert inspect.unwrap(forward).__globals__["apply_rotary_pos_emb"] is liger_rotary_pos_emb
    assert "forward" not in vars(other.model.layers[0].self_attn)
    assert modeling_llama.apply_rotary_pos_emb is not liger_rotary_pos_emb


def test_an_activation_in_a_layer_of_its_own_is_replaced_and_taken_back(monkeypatch):
    monkeypatch.setattr("sftcore_plugins.kernels.liger._interpreter_fails", lambda switch: "")
    config = transformers.NemotronConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.NemotronForCausalLM(config)
    own = model.model.layers[0].mlp.act_fn
    _, report = patched(model)
    assert report.replaced == ("relu_squared of 2 modules",)
    assert type(model.model.layers[0].mlp.act_fn).__module__.startswith("liger_kernel.")
    report.undo()
    assert model.model.layers[0].mlp.act_fn is own
    assert type(transformers.NemotronForCausalLM(config).model.layers[0].mlp.act_fn) is type(own)


def test_what_liger_cannot_patch_in_this_transformers_is_skipped_with_its_reason(monkeypatch):
    from transformers.models.llama import modeling_llama

    model = build("Llama")
    monkeypatch.delattr(modeling_llama, "LlamaModel")
    monkeypatch.setattr("sftcore_plugins.kernels.liger._interpreter_fails", lambda switch: "")
    _, report = patched(model, rope=False, mlp=False)
    assert report.replaced == ()
    assert "cannot patch it in transformers" in report.skipped["rms_norm"]
    assert not any("forward" in vars(module) for module in model.modules())


def test_upstream_still_has_the_names_that_the_patch_relies_on():
    from liger_kernel.transformers import _apply_liger_kernel_to_instance, monkey_patch
    from transformers.models.llama import modeling_llama

    assert list(inspect.signature(_apply_liger_kernel_to_instance).parameters) == ["model", "kwargs"]
    switches = inspect.signature(monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN["llama"]).parameters
    assert {"rope", "rms_norm", "swiglu", "cross_entropy", "fused_linear_cross_entropy", "model"} <= switches.keys()
    assert "apply_rotary_pos_emb" in inspect.unwrap(modeling_llama.LlamaAttention.forward).__code__.co_names


def test_an_mlp_with_another_activation_is_left_alone():
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
            hidden_act="gelu",
        )
    )  # fmt: skip
    _, report = patched(model, **{**OFF, "mlp": True})
    assert report.replaced == ()
    assert report.skipped == {"swiglu": "it computes silu, and the model gelu"}


def test_a_model_that_liger_does_not_know_is_left_alone():
    _, report = patched(build("OPT"))
    assert report.replaced == ()
    assert report.skipped["rope"] == "Liger does not know opt"


def test_what_the_interpreter_cannot_run_is_skipped_with_its_error():
    _, report = patched(build("Llama"))
    assert report.replaced == ("rope of 2 modules",)
    assert "Triton's interpreter cannot run it (InterpreterError" in report.skipped["rms_norm"]


# --- In a run -------------------------------------------------------------------------------------------------------
def set_up_with(settings, *chosen):
    return set_up(chosen, settings, ModelRequest(), where="SFTConfig")


def test_use_liger_kernel_asks_for_kernels_and_the_fused_loss():
    plan = set_up_with({"use_liger_kernel": True, "liger_kernel_config": {"swiglu": False, "rope": True}}).plan
    kernel, loss = plan.selected("kernel")[0], plan.selected("loss")[0]
    assert (kernel.name, dict(kernel.options)) == ("liger", {"rope": True, "mlp": False})
    assert (loss.name, dict(loss.options)) == ("liger", {})


def test_liger_kernel_config_can_leave_the_loss_to_another_plugin():
    config = {"fused_linear_cross_entropy": False}
    plan = set_up_with({"use_liger_kernel": True, "liger_kernel_config": config}).plan
    assert plan.selected("loss")[0].name == "nll"


@pytest.mark.skipif(importlib.util.find_spec("unsloth") is None, reason="unsloth is not installed")
def test_the_kernels_conflict_with_those_of_unsloth():
    chosen = [Selection("loader", "unsloth"), Selection("kernel", "liger")]
    with pytest.raises(ConflictError, match=r'both claim the slot "kernel\.rms_norm"'):
        set_up_with({}, *chosen)


def test_an_adapter_on_the_head_is_refused_before_weights_are_read():
    adapter = Selection("adapter", "lora", {"target_modules": ["q_proj", "lm_head"]})
    setup = set_up_with({"use_liger_kernel": True}, adapter)
    with pytest.raises(ValueError, match="puts an adapter on lm_head"):
        check(setup)


def test_without_gpu_and_interpreter_the_run_is_refused(interpreter, monkeypatch):
    # whether a kernel is interpreted is decided when it is defined, and all of this process shall be
    importlib.import_module("liger_kernel.ops")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="need a GPU, and the run asks for the CPU"):
        check(set_up_with({"use_liger_kernel": True, "use_cpu": True}))
    if not torch.accelerator.is_available():
        with pytest.raises(ModelError, match='kernel "liger" needs a GPU'):
            patched(build("Llama"))
        with pytest.raises(ModelError, match='loss "liger" needs a GPU'):
            LigerLoss().make_loss(loaded=None, plan=Plan(()))


@pytest.mark.parametrize(
    ("lines", "interpreted"),
    [
        (["os.environ['TRITON_INTERPRET'] = '1'"], True),
        (["os.environ['TRITON_INTERPRET'] = '1'", "import triton"], True),
        (["import triton", "os.environ['TRITON_INTERPRET'] = '1'"], False),
        (["import triton", "triton.knobs.runtime.interpret = True"], False),
        (["os.environ['TRITON_INTERPRET'] = '1'", "import triton", "triton.knobs.runtime.interpret = False"], False),
    ],
)
def test_whether_kernels_are_interpreted_is_what_triton_has_decided(lines, interpreted):
    code = ["import os", *lines, "from sftcore.plugin_api import triton_is_interpreted as asked", "print(asked())"]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == f"{interpreted}\n"


@pytest.mark.slow
def test_a_run_with_liger_has_the_losses_of_one_without_and_leaves_a_plain_model(
    tokenizer, tmp_path, taught_interpreter
):
    from datasets import Dataset

    from sftcore import SFTConfig, SFTTrainer
    from tests.conftest import make_llama

    def losses(**settings):
        model = make_llama(tokenizer)
        args = SFTConfig(
            str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=1, logging_steps=1, report_to="none",
            learning_rate=1e-2, use_cpu=True, eval_strategy="steps", eval_steps=2, max_length=12, padding_free=False,
            gradient_checkpointing=False, **settings,
        )  # fmt: skip
        rows = Dataset.from_list([{"prompt": "say", "completion": " hello"}] * 2)
        trainer = SFTTrainer(model, args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
        trainer.train()
        logged = trainer.state.log_history
        assert not any("forward" in vars(module) for module in model.model.modules())
        return trainer, [row.get("loss", row.get("eval_loss")) for row in logged[:-1]]

    _, plain = losses()
    trainer, fast = losses(use_liger_kernel=True)
    torch.testing.assert_close(torch.tensor(fast), torch.tensor(plain), rtol=1e-4, atol=0)
    notes = " ".join(trainer.loaded.notes)
    assert "rope of 2 modules" in notes
    assert "swiglu of 2 modules" in notes
    assert "entropy" not in trainer.state.log_history[0]
    assert "mean_token_accuracy" in trainer.state.log_history[0]


def test_cross_entropy_on_whole_logits_is_what_torch_computes():
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.arange(7)
    output = LigerLoss(fused=False).make_loss(loaded=None, plan=Plan(()))(
        logits.clone(), torch.nn.Identity(), labels, None, torch.tensor(7.0)
    )
    torch.testing.assert_close(output.loss, cross_entropy(logits, labels), rtol=1e-5, atol=0)
