"""An optimizer of the user's is compared with what trains, and steps on master copies as the run's own would."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.optim import SGD, AdamW

from sftcore import ConflictError, SFTConfig, SFTTrainer
from tests.conftest import make_llama

ROWS = Dataset.from_list([{"text": f"hello, world {i}"} for i in range(8)])
LORA = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])
STEPS = 30


@pytest.fixture
def make(tmp_path, tokenizer):
    def trainer(model, optimizer=None, cls=SFTTrainer, peft_config=None, **fields):
        own = {
            "use_cpu": True, "max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no", "report_to": [],
            "disable_tqdm": True, "gradient_checkpointing": False, "max_grad_norm": 0.0,
            "lr_scheduler_type": "constant",
        }  # fmt: skip
        args = SFTConfig(str(tmp_path), **{**own, **fields})
        given = {"optimizers": (optimizer, None), "peft_config": peft_config, "processing_class": tokenizer}
        return cls(model, args, train_dataset=ROWS, **given)

    return trainer


@pytest.fixture
def one_layer(tokenizer):
    return make_llama(tokenizer, num_hidden_layers=1)


def with_own(make_optimizer):
    class Own(SFTTrainer):
        def create_optimizer(self, *args, **kwargs):
            self.optimizer = make_optimizer(self.model)
            return self.optimizer

    return Own


# --- What it holds, and what trains -----------------------------------------------------------------------------------
@pytest.mark.parametrize("modules", [None, ["lm_head"]])
def test_an_optimizer_made_before_the_adapter_is_refused(make, one_layer, modules):
    adapter = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=modules)
    optimizer = AdamW(one_layer.parameters(), lr=1e-2)
    trainer = make(one_layer, optimizer, peft_config=adapter)
    with pytest.raises(ConflictError, match=r"holds 12 parameters, and none of them trains: all of them are frozen"):
        trainer.train()


def test_an_optimizer_of_another_model_is_refused(make, one_layer):
    other = copy.deepcopy(one_layer)
    with pytest.raises(ConflictError, match=r"none of them trains: 12 of them are not in the model"):
        make(one_layer, SGD(other.parameters(), lr=1e-2)).train()


@pytest.mark.parametrize("name", ["create_optimizer", "create_optimizer_and_scheduler"])
def test_so_is_one_that_a_method_makes(make, one_layer, name):
    other = copy.deepcopy(one_layer)

    def method(self, *args, **kwargs):
        self.optimizer = SGD(other.parameters(), lr=1e-2)
        return self.optimizer

    cls = type("Own", (SFTTrainer,), {"create_optimizer": method, name: method})
    with pytest.raises(ConflictError, match="none of them trains"):
        make(one_layer, cls=cls).train()


def test_one_that_holds_the_embeddings_from_before_they_grew_is_refused(make, one_layer):
    optimizer = SGD(one_layer.parameters(), lr=1e-2)
    one_layer.resize_token_embeddings(one_layer.config.vocab_size + 8)
    with pytest.raises(ConflictError, match=r"does not hold lm_head\.weight.*replaced"):
        make(one_layer, optimizer).train()


def test_parameters_that_no_group_holds_are_said_with_their_number(make, one_layer):
    before = {name: one.detach().clone() for name, one in one_layer.named_parameters()}
    trainer = make(one_layer, SGD([one_layer.lm_head.weight], lr=1e-1))
    with pytest.warns(UserWarning, match=r"11 of the 12 parameters that train, such as model\.embed_tokens\.weight"):
        trainer.train()
    moved = [name for name, one in one_layer.named_parameters() if not torch.equal(one, before[name])]
    assert moved == ["lm_head.weight"]


@pytest.mark.parametrize("kind", ["all", "adapter", "with a parameter of the user's", "frozen after it was made"])
def test_an_optimizer_of_what_trains_is_taken_without_a_word(make, one_layer, kind):
    model = get_peft_model(one_layer, LORA) if kind == "adapter" else one_layer
    extra = [torch.nn.Parameter(torch.zeros(()))] if kind == "with a parameter of the user's" else []
    optimizer = AdamW([*model.parameters(), *extra], lr=1e-2)
    if kind == "frozen after it was made":
        model.model.embed_tokens.weight.requires_grad_(False)
    trainer = make(model, optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*parameter")
        trainer.train()
        trainer.train()  # the second time, it is the one that accelerate has prepared
    assert trainer.state.global_step == 1


class OfCopies(torch.optim.Optimizer):
    """Steps on copies that it holds itself, as optimizers that offload to the host do."""

    def __init__(self, parameters, lr):
        self.pairs = [(one, one.detach().clone()) for one in parameters]
        super().__init__([copied for _, copied in self.pairs], {"lr": lr})

    def step(self, closure=None):
        with torch.no_grad():
            for parameter, copied in self.pairs:
                copied -= self.param_groups[0]["lr"] * parameter.grad
                parameter.copy_(copied)


def test_an_optimizer_with_copies_of_its_own_is_taken(make, one_layer):
    before = one_layer.lm_head.weight.detach().clone()
    with pytest.warns(UserWarning, match="OfCopies holds 12 parameters, and none of them is in the model"):
        make(one_layer, OfCopies(one_layer.parameters(), lr=1e-2)).train()
    assert not torch.equal(one_layer.lm_head.weight, before)


# --- Master copies ---------------------------------------------------------------------------------------------------
def trained(trainer):
    trainer.train()
    return {name: one.detach().clone() for name, one in trainer.model.named_parameters() if one.requires_grad}


@pytest.mark.parametrize("adapted", [False, True])
def test_every_optimizer_steps_on_master_copies(make, tokenizer, adapted):
    """The weights of the run with the same optimizer of the run's own, which differ from those without copies."""

    def model():
        made = make_llama(tokenizer, num_hidden_layers=1).to(torch.bfloat16)
        torch.manual_seed(1)
        return get_peft_model(made, LORA).to(torch.bfloat16) if adapted else made

    fields = {"optim": "sgd", "learning_rate": 1e-3, "max_steps": STEPS, "master_weights": True}
    fields |= {"adapter_dtype": "bfloat16"} if adapted else {}

    def sgd(model):
        return SGD([one for one in model.parameters() if one.requires_grad], lr=1e-3)

    wanted = trained(make(model(), **fields))
    given = model()
    found = {
        "given": trained(make(given, sgd(given), **fields)),
        "overridden": trained(make(model(), cls=with_own(sgd), **fields)),
    }
    without = trained(make(model(), **{**fields, "master_weights": False}))
    for weights in found.values():
        assert all(torch.equal(weights[name], one) for name, one in wanted.items())
    assert any(not torch.equal(without[name], one) for name, one in wanted.items())


def test_a_resumed_run_has_the_copies_that_it_had(make, tokenizer):
    fields = {"learning_rate": 1e-3, "max_steps": 4, "master_weights": True, "save_strategy": "steps", "save_steps": 2}
    own = with_own(lambda model: SGD(model.parameters(), lr=1e-3, momentum=0.9))

    def trainer():
        return make(make_llama(tokenizer, num_hidden_layers=1).to(torch.bfloat16), cls=own, **fields)

    whole = trained(trainer())
    resumed = trainer()
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-2")
    assert all(torch.equal(one, whole[name]) for name, one in resumed.model.named_parameters())


def test_an_optimizer_that_cannot_have_copies_says_how_to_go_on_without(make, tokenizer):
    model = make_llama(tokenizer, num_hidden_layers=1).to(torch.bfloat16)
    optimizer = torch.optim.Adagrad(model.parameters())  # makes its state when it is made
    with pytest.raises(ConflictError, match="master_weights: false"):
        make(model, optimizer, master_weights=True).train()
    assert make(model, optimizer, master_weights=False).train().global_step == 1
