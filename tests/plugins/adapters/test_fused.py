"""LoRA's product in one operation: the numbers of PEFT's own forward, in every state that PEFT knows."""

from __future__ import annotations

import contextlib
import copy
import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from sftcore_plugins.adapters import _low_rank
from sftcore_plugins.adapters._fused import fuse
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Qwen2Config, Qwen2ForCausalLM

from sftcore import SFTTrainer
from sftcore.model.products import onednn as cpu_products
from tests.conftest import alpaca_rows, make_llama
from tests.documents.architectures import ARCHITECTURES, GROUPED, build
from tests.train.test_trainer import config

IDS = torch.arange(4, 36).reshape(2, 16)


@pytest.fixture(autouse=True, params=["torch", "oneDNN"])
def multiplied_by(request, monkeypatch):
    """By which library float32 products are computed; by oneDNN where CPUs are faster with it."""
    faster = request.param == "oneDNN"
    if faster and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(cpu_products, "FEWEST", 1)
    monkeypatch.setattr(cpu_products, "_cpu_prefers_onednn", lambda: faster)
    calls, original = [], cpu_products.by_onednn
    monkeypatch.setattr(cpu_products, "by_onednn", lambda *factors: calls.append(factors) or original(*factors))
    return request.param, calls


def pair(tokenizer, dtype=torch.float32, config=None, **options):
    """The same adapted model twice: as PEFT makes it, and fused; with B away from the zero at which PEFT starts it."""
    made = []
    for fused in (False, True):
        torch.manual_seed(0)
        base = make_llama(tokenizer, **{"hidden_size": 64, "intermediate_size": 128, **(config or {})}).to(dtype)
        adapted = get_peft_model(
            base, LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM", "target_modules": "all-linear", **options})
        )
        with torch.no_grad():
            for name, one in adapted.named_parameters():
                if "lora_B" in name or name.endswith(".bias"):
                    one.normal_(0, 0.2)
        if fused:
            assert fuse(adapted) == 14
        made.append(adapted)
    return made


def step(model, seed=1, **context):
    """Logits, loss and gradients of one step."""
    torch.manual_seed(seed)
    model.zero_grad()
    with context.get("around", contextlib.nullcontext()):
        found = model(input_ids=IDS, labels=IDS)
    found.loss.backward()
    grads = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return found.logits.detach(), found.loss.detach(), grads


def same(ours, theirs, tolerance):
    for got, wanted in zip(ours[:2], theirs[:2], strict=True):
        assert (got - wanted).norm() <= tolerance * wanted.norm()
    assert ours[2].keys() == theirs[2].keys()
    assert ours[2]
    for name, wanted in theirs[2].items():
        assert (ours[2][name] - wanted).norm() <= tolerance * wanted.norm() + 1e-12, name


BIASES = {"attention_bias": True, "mlp_bias": True}
"""As Qwen2 and others have them."""


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"config": BIASES}])
def test_loss_and_gradients_are_those_of_peft(tokenizer, options):
    theirs, ours = pair(tokenizer, **options)
    same(step(ours), step(theirs), 1e-5)


def test_all_products_of_a_layer_go_to_the_library_that_is_asked_for(tokenizer, multiplied_by):
    _, ours = pair(tokenizer)
    step(ours)
    library, calls = multiplied_by
    # by each weight and by B forward and backward, less what would flow on to the embeddings; by A for each input once
    assert len(calls) == {"torch": 0, "oneDNN": 14 * 2 - 3 + 14 * 2 + 8 * 2}[library]


def distance(found, exact):
    """How far all gradients together are from others."""
    return sum((found[2][name] - one).norm() ** 2 for name, one in exact[2].items()).sqrt()


@pytest.mark.parametrize("rows", [512, 32, 7], ids=["fewer rows than at once", "as many", "more"])
def test_a_bfloat16_base_under_a_float32_adapter_is_as_near_to_float32_as_pefts(tokenizer, monkeypatch, rows):
    monkeypatch.setattr(_low_rank, "ROWS_AT_ONCE", rows)
    theirs, ours = pair(tokenizer, dtype=torch.bfloat16)
    assert next(one.dtype for name, one in ours.named_parameters() if "lora_A" in name) == torch.float32
    got, wanted = step(ours), step(theirs)
    same(got, wanted, 2e-2)
    exact = step(theirs.float())
    assert distance(got, exact) <= 1.1 * distance(wanted, exact)


def test_a_base_that_is_trained_too_gets_pefts_gradients(tokenizer):
    models = pair(tokenizer)
    for model in models:
        for name, one in model.named_parameters():
            one.requires_grad_("norm" not in name)
    theirs, ours = (step(model) for model in models)
    assert sum("base_layer" in name for name in theirs[2]) == 14
    same(ours, theirs, 1e-5)


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_what_a_hook_of_the_base_is_given_stays_as_it_is(tokenizer, kind):
    seen = []

    def keep(module, *given):
        found = given[-1] if torch.is_tensor(given[-1]) else given[-1][0]
        seen[-1].append(found)

    for model in pair(tokenizer):
        seen.append([])
        for name, module in model.named_modules():
            if name.endswith("base_layer"):
                getattr(module, kind)(keep)
        step(model)
    assert len(seen[0]) == len(seen[1]) >= 11  # nothing flows back from the first three
    for theirs, ours in zip(*seen, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 8), (1, 3, 8), (2, 1, 3, 8), (0, 3, 8), (8,)])
@pytest.mark.parametrize("made", ["as it is", "transposed", "needs no gradient"])
def test_any_input_of_a_linear_layer_gives_pefts_output_which_may_be_changed_in_place(bias, shape, made):
    torch.manual_seed(0)
    layer = get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(8, 6, bias=bias)), LoraConfig(r=2, target_modules=["0"], lora_alpha=3)
    )
    torch.nn.init.normal_(layer.base_model.model[0].lora_B["default"].weight)
    given = torch.randn(shape)
    found = []
    for fused in (0, 1):
        x = given.clone()
        if made == "transposed" and x.ndim > 1:
            x = x.transpose(0, -2).contiguous().transpose(0, -2)
        x.requires_grad_(made != "needs no gradient")
        layer.zero_grad()
        assert fuse(layer) == 1 if fused else True
        out = layer(x)
        out.mul_(2)
        out.square().sum().backward()
        found.append([out.detach(), x.grad, *(one.grad for one in layer.parameters())])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


# PEFT itself cannot adapt the routers of Llama 4
@pytest.mark.parametrize("name", [*(name for name in ARCHITECTURES if name != "Llama4"), "Qwen2"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_each_architecture_gets_pefts_gradients(name, dropout):
    """Biases, norms on queries, experts, residuals that are added in place: what a Llama does not have."""
    found = []
    for fused in (False, True):
        base = build(name, "eager") if name in ARCHITECTURES else Qwen2ForCausalLM(Qwen2Config(**GROUPED))
        torch.manual_seed(1)
        for key, weight in base.named_parameters():
            if name == "Qwen2" or key.endswith("bias"):
                torch.nn.init.normal_(weight, 0, 0.1)
        adapted = get_peft_model(
            base, LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear", lora_dropout=dropout)
        )
        for key, weight in adapted.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, 0, 0.1)
        if fused and name not in ("GPT2",):  # whose layers are convolutions
            assert fuse(adapted)
        found.append(step(adapted.train()))
    same(found[1], found[0], 1e-4)


def test_a_second_backward_pass_over_a_kept_graph_gives_the_same(tokenizer):
    _, ours = pair(tokenizer)
    loss = ours(input_ids=IDS, labels=IDS).loss
    loss.backward(retain_graph=True)
    once = {name: one.grad.clone() for name, one in ours.named_parameters() if one.grad is not None}
    loss.backward()
    for name, gradient in once.items():
        torch.testing.assert_close(ours.get_parameter(name).grad, 2 * gradient)


def test_dropout_draws_what_peft_draws(tokenizer):
    theirs, ours = pair(tokenizer, lora_dropout=0.3)
    same(step(ours.train()), step(theirs.train()), 1e-5)
    assert not torch.equal(step(ours, seed=1)[1], step(ours, seed=2)[1])


def products(model, around):
    """How many operations added the products of layers, in the graph of one forward pass."""
    with around:
        return operations(model(input_ids=IDS, labels=IDS).loss)


def operations(loss):
    left = [loss.grad_fn]
    seen = set()
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left.extend(one for one, _ in node.next_functions)
    return sum(node.name() == "AddLowRankBackward" for node in seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_product_is_added_in_its_dtype_as_near_to_float32_as_pefts(tokenizer, dtype):
    theirs, ours = pair(tokenizer, dtype=dtype)
    around = torch.autocast("cpu", torch.bfloat16)
    assert products(ours, around) == 14
    got, wanted = step(ours, around=around), step(theirs, around=around)
    same(got, wanted, 1e-1)
    exact = step(theirs.float())
    assert distance(got, exact) <= 1.2 * distance(wanted, exact)


def test_layers_that_are_given_the_same_input_are_computed_together(tokenizer):
    _, ours = pair(tokenizer)
    assert products(ours, contextlib.nullcontext()) == 8  # q, k and v; o; gate and up; down; in two layers


class Attention(torch.nn.Module):
    """Three projections by the names of transformers, called as the test says."""

    def __init__(self, calls):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (torch.nn.Linear(8, size, bias=size == 4) for size in (6, 4, 4))
        self.calls = calls

    def forward(self, hidden_states):
        return self.calls(self, hidden_states)


def of_each(module, x):
    return torch.cat([module.q_proj(x), module.k_proj(x), module.v_proj(x)], -1)


def of_another_input(module, x):
    return torch.cat([module.q_proj(x), module.k_proj(x * 2), module.v_proj(x)], -1)


def of_one_twice(module, x):
    return torch.cat([module.q_proj(x), module.q_proj(x + 1), module.q_proj(x)], -1)


def of_the_first_alone(module, x):
    return module.q_proj(x)


def of_others_first(module, x):
    return torch.cat([module.v_proj(x), module.k_proj(x), module.q_proj(x)], -1)


def changed_in_place(module, x):
    query = module.q_proj(x)
    query.mul_(3)
    key = module.k_proj(x)
    key.add_(1)
    return torch.cat([query, key, module.v_proj(x)], -1)


def without_gradients_in_between(module, x):
    query = module.q_proj(x)
    with torch.no_grad():
        key = module.k_proj(x)
    return torch.cat([query, key, module.v_proj(x)], -1)


CALLS = [
    of_each, of_another_input, of_one_twice, of_the_first_alone, of_others_first, changed_in_place,
    without_gradients_in_between,
]  # fmt: skip


def adapted(calls, fused, **options):
    torch.manual_seed(0)
    layer = get_peft_model(
        torch.nn.Sequential(Attention(calls)),
        LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False, **options),
    )
    assert not fused or fuse(layer) == 3
    return layer


@pytest.mark.parametrize("calls", CALLS)
def test_layers_of_a_module_give_pefts_numbers_however_they_are_called(calls):
    found = []
    for fused in (False, True):
        layer, given = adapted(calls, fused), torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
        for _ in range(2):  # what one call leaves behind must not show in the next
            x = given.clone().requires_grad_()
            layer.zero_grad()
            out = layer(x)
            out.square().sum().backward()
        found.append([out.detach(), x.grad, *(one.grad for one in layer.parameters())])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_an_input_that_is_changed_in_between_is_read_again():
    def calls(module, x):
        query = module.q_proj(x)
        x.mul_(2)
        return torch.cat([query, module.k_proj(x), module.v_proj(x)], -1)

    with torch.no_grad():
        theirs, ours = (adapted(calls, fused)(torch.ones(2, 8)) for fused in (False, True))
    torch.testing.assert_close(ours, theirs)
    with torch.inference_mode():
        torch.testing.assert_close(adapted(calls, fused=True)(torch.ones(2, 8)), theirs)


def test_a_layer_is_computed_when_it_is_called_if_it_is_not_as_the_first_or_somebody_looks_at_its_input():
    def hooked(layer, _):
        layer.register_forward_pre_hook(lambda module, args: (args[0] * 2,))

    def switched_off(layer, _):
        layer.merge()

    def in_another_dtype(layer, name):
        layer.lora_A[name].to(torch.float64)
        layer.lora_B[name].to(torch.float64)

    def trained(layer, _):
        layer.base_layer.requires_grad_()

    for change in (hooked, switched_off, in_another_dtype, trained):
        found = []
        for fused in (False, True):
            layer = adapted(of_each, fused)
            change(layer.base_model.model[0].k_proj, "default")
            x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
            out = layer(x)
            out.sum().backward()
            found.append((out.detach(), x.grad))
        for theirs, ours in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, msg=change.__name__)


def alone(fused):
    """The attention of a module, whose layers a user calls by hand."""
    return adapted(of_each, fused).base_model.model[0]


def test_layers_that_are_called_by_hand_are_computed_when_they_are_called():
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    found = []
    for fused in (False, True):
        module = alone(fused)
        module.q_proj(x).sum().backward()
        with torch.no_grad():
            module.k_proj.lora_B["default"].weight.mul_(3)
        key = module.k_proj(x)
        key.sum().backward()  # of a graph of its own
        module.q_proj(x)
        module.v_proj.enable_adapters(enabled=False)
        found.append([key.detach(), module.v_proj(x).detach(), *(one.grad for one in module.parameters())])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_frozen_layer_gives_what_needs_no_gradient_and_gradients_have_their_own_memory():
    seen = {}

    def calls(module, x):
        seen.update(query=module.q_proj(x), key=module.k_proj(x), value=module.v_proj(x))
        return seen["query"].sum() + seen["value"].sum()

    layer = adapted(calls, fused=True)
    module = layer.base_model.model[0]
    module.k_proj.lora_A.requires_grad_(False)
    module.k_proj.lora_B.requires_grad_(False)
    loss = layer(torch.randn(4, 8))
    assert not seen["key"].requires_grad
    assert operations(loss) == 1
    loss.backward()
    for one in (module.q_proj, module.v_proj):
        gradient = one.lora_A["default"].weight.grad
        assert gradient.untyped_storage().nbytes() == gradient.nbytes


def test_any_order_of_calls_is_computed_together_and_nothing_is_left_of_calls_that_end_early():
    layer = adapted(of_others_first, fused=True)
    assert operations(layer(torch.randn(4, 8)).sum()) == 1

    def failing(module, x):
        module.q_proj(x)
        raise ValueError("in the middle")

    layer = adapted(failing, fused=True)
    with pytest.raises(ValueError, match="in the middle"):
        layer(torch.randn(4, 8))
    assert layer.base_model.model[0].q_proj.forward.args[1]._computed is None


@pytest.mark.parametrize("forward", [torch.add, None, min], ids=["of torch", "none", "of Python"])
def test_a_module_whose_signature_nobody_can_read_is_fused(forward):
    torch.manual_seed(0)
    layer = get_peft_model(
        torch.nn.Sequential(Attention(of_each)), LoraConfig(r=2, target_modules=["q_proj", "k_proj"])
    )
    layer.base_model.model[0].forward = forward
    assert fuse(layer) == 2


@pytest.mark.parametrize("given", ["key_value_states", "encoder_hidden_states"])
def test_layers_that_see_two_sequences_are_not_computed_together(given):
    class Cross(Attention):
        pass

    def forward(self, hidden_states, **others):
        return self.q_proj(hidden_states) + self.k_proj(others[given]).sum() + self.v_proj(others[given]).sum()

    names = ["self", "hidden_states", given]
    kinds = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    forward.__signature__ = inspect.Signature(kinds)
    Cross.forward = forward
    torch.manual_seed(0)
    layer = get_peft_model(
        torch.nn.Sequential(Cross(None)), LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"])
    )
    fuse(layer)
    x = torch.randn(2, 8)
    module = layer.base_model.model[0]
    assert operations(module(x, **{given: x}).sum()) == 3


def test_a_compiled_model_gives_the_same(tokenizer):
    _, ours = pair(tokenizer)
    wanted = step(ours)
    compiled = torch.compile(ours, backend="aot_eager")
    got = compiled(input_ids=IDS, labels=IDS)
    torch.testing.assert_close(got.logits, wanted[0], atol=1e-4, rtol=1e-4)


def test_several_threads_get_their_own_outputs():
    """As of a model that answers while others ask."""
    theirs, ours = (adapted(of_each, fused) for fused in (False, True))
    inputs = [torch.full((3, 8), float(size)) for size in range(50)]

    def answer(x):
        with torch.no_grad():
            return ours(x)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(answer, inputs * 4))
    with torch.no_grad():
        wanted = [theirs(x) for x in inputs]
    for got, one in zip(found, wanted * 4, strict=True):
        torch.testing.assert_close(got, one)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_the_model_computes_with_its_own_weights(tokenizer, copy_of):
    _, ours = pair(tokenizer)
    wanted = ours(input_ids=IDS).logits
    with torch.no_grad():  # a forward pass that ends too early
        ours.base_model.model.model.layers[0].mlp.gate_proj(torch.zeros(1, 64))
    copied = copy_of(ours)
    with torch.no_grad():
        for one in ours.parameters():
            one.zero_()
    torch.testing.assert_close(copied(input_ids=IDS).logits, wanted)
    assert products(copied, contextlib.nullcontext()) == 8


def test_gradient_checkpointing_gives_pefts_numbers(tokenizer):
    theirs, ours = pair(tokenizer)
    for model in (theirs, ours):
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    same(step(ours), step(theirs), 1e-5)


def test_an_adapter_can_be_switched_off_changed_and_merged(tokenizer):
    theirs, ours = pair(tokenizer)
    for model in (theirs, ours):
        model.add_adapter(
            "second", LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, target_modules="all-linear")
        )
    ours.load_state_dict(theirs.state_dict())

    def logits(model):
        with torch.no_grad():
            return model.eval()(input_ids=IDS).logits

    with ours.disable_adapter(), theirs.disable_adapter():
        torch.testing.assert_close(logits(ours), logits(theirs))
    for model in (theirs, ours):
        model.set_adapter("second")
    torch.testing.assert_close(logits(ours), logits(theirs))
    torch.testing.assert_close(logits(ours.merge_and_unload()), logits(theirs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", [{"load_in_4bit": True}, {"load_in_8bit": True}])
def test_a_quantised_base_gives_pefts_numbers(tmp_path, tokenizer, bits):
    make_llama(tokenizer, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    made = []
    for fused in (False, True):
        base = AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=BitsAndBytesConfig(**bits), dtype=torch.float32
        )
        for one in base.parameters():
            one.requires_grad_(False)
        torch.manual_seed(0)
        adapted = get_peft_model(
            base, LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
        )
        assert not fused or fuse(adapted) == 14
        made.append(adapted.train())
    same(step(made[1]), step(made[0]), 1e-2 if "load_in_8bit" in bits else 1e-5)


def test_a_run_says_that_it_fuses_and_can_leave_it_to_peft(tmp_path, model_folder):
    def run(**options):
        args = config(tmp_path, plugins={"adapter": {"lora": {"r": 4, "lora_dropout": 0.0, **options}}})
        trainer = SFTTrainer(str(model_folder), args, train_dataset=Dataset.from_list(alpaca_rows(16)))
        trainer.train()
        return trainer

    fused, plain = run(), run(fused=False)
    assert "layers add their product in one operation" in "\n".join(fused.loaded.notes)
    assert "one operation" not in "\n".join(plain.loaded.notes)
    for name, one in plain.model.named_parameters():
        torch.testing.assert_close(fused.model.get_parameter(name), one, atol=1e-5, rtol=1e-4)


def test_dora_keeps_pefts_forward(tokenizer):
    model = get_peft_model(make_llama(tokenizer), LoraConfig(r=4, task_type="CAUSAL_LM", use_dora=True))
    assert fuse(model) == 0


def test_less_is_kept_for_the_backward_pass(tokenizer):
    def kept(model):
        own = {one.untyped_storage().data_ptr() for one in model.parameters()}
        seen = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(input_ids=IDS)
        return sum(size for size, _ in seen.values())

    theirs, ours = pair(tokenizer, dtype=torch.bfloat16)
    assert kept(ours) < 0.75 * kept(theirs)


def test_the_gradient_can_itself_be_differentiated(tokenizer):
    """As a penalty on it needs, with frozen weights under the adapter and with others."""

    def penalty(model):
        loss = model(input_ids=IDS, labels=IDS).loss
        trained = [one for one in model.parameters() if one.requires_grad]
        gradients = torch.autograd.grad(loss, trained, create_graph=True)
        (loss + sum((one**2).sum() for one in gradients)).backward()
        return loss.detach(), loss.detach(), {name: one.grad for name, one in model.named_parameters()
                                              if one.requires_grad}  # fmt: skip

    eager = {"attn_implementation": "eager"}
    for options in ({}, {"lora_dropout": 1e-9}):
        theirs, ours = pair(tokenizer, config=eager, **options)
        same(penalty(ours), penalty(theirs), 1e-4)


def test_a_hook_within_the_adapter_is_called_as_in_peft(tokenizer):
    seen = []
    for model in pair(tokenizer):
        layer = model.base_model.model.model.layers[0].mlp.up_proj
        layer.lora_A["default"].register_forward_hook(lambda module, args, output: seen.append(output.norm().item()))
        step(model)
    assert len(seen) == 2
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)


def test_a_hook_on_all_modules_sees_what_it_sees_of_peft(tokenizer):
    seen = [[], []]
    for model, kinds in zip(pair(tokenizer), seen, strict=True):
        named = {id(module): name for name, module in model.named_modules()}
        hook = torch.nn.modules.module.register_module_forward_hook(
            lambda module, *_, kinds=kinds, named=named: kinds.append(named.get(id(module)))
        )
        try:
            step(model)
        finally:
            hook.remove()
    assert any("lora_A" in str(name) for name in seen[0])
    assert seen[0] == seen[1]


def test_transforms_of_torch_func_take_pefts_own_forward(tokenizer):
    def gradient(model):
        trained = {name: one.detach() for name, one in model.named_parameters() if one.requires_grad}

        def loss(weights):
            return torch.func.functional_call(model, weights, (), {"input_ids": IDS, "labels": IDS}).loss

        return torch.func.grad(loss)(trained)

    wanted, got = (gradient(one) for one in pair(tokenizer, config={"attn_implementation": "eager"}))
    for name, one in wanted.items():
        torch.testing.assert_close(got[name], one, rtol=1e-4, atol=1e-6)
