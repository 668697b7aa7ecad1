"""What a subclass may override without calling ours, line by line of the table in docs/how-to/subclass.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from sftcore import SFTConfig, SFTCoreError, SFTTrainer
from tests.conftest import alpaca_rows, make_llama
from tests.documents.architectures import build
from tests.train.overrides import subclasses
from tests.train.overrides.twins import FIELDS, assert_same, twins

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "subclass.md"


def made_of(**methods):
    """A subclass with these methods, each given as a function of the trainer that it extends."""
    return lambda base, seen: type("Mine", (base,), {name: make(base, seen) for name, make in methods.items()})


def trainer_of(folder, tokenizer, kind=SFTTrainer, model=None, **fields):
    rows = Dataset.from_list(alpaca_rows(8))
    args = SFTConfig(str(folder), **{**FIELDS, "gradient_checkpointing": False, "dataset_cache": False, **fields})
    model = make_llama(tokenizer) if model is None else model
    return kind(model, args, train_dataset=rows, eval_dataset=rows.select(range(3)), processing_class=tokenizer)


# --- The loss and the step --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("accumulation", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_training_step_that_does_not_call_ours(tmp_path, tokenizer, accumulation):
    rows = Dataset.from_list(alpaca_rows(4 * accumulation))
    made = subclasses.made_of("step")
    own, other = twins(tmp_path, tokenizer, rows=rows, subclass=made, gradient_accumulation_steps=accumulation)
    assert_same(own, other)
    assert own.losses == pytest.approx(other.losses, abs=1e-5)
    assert own.logs[0]["num_tokens"] > 0  # compute_loss counts, whoever calls it


@pytest.mark.slow
def test_a_training_step_that_is_set_on_the_trainer_itself(tmp_path, tokenizer):
    def subclass(base, seen):
        class Mine(base):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)

                def step(*args, **kwargs):
                    handle = self.model.lm_head.weight.register_hook(lambda grad: seen.notes.append(grad.norm().item()))
                    loss = base.training_step(self, *args, **kwargs)
                    handle.remove()
                    return loss

                self.training_step = step

        return Mine

    own, other = twins(tmp_path, tokenizer, subclass=subclass, gradient_accumulation_steps=2)
    assert_same(own, other)
    assert own.notes == pytest.approx(other.notes, rel=1e-4)
    assert "training_step" in vars(own.trainer)


@pytest.mark.slow
def test_a_gradient_of_torch_func_within_compute_loss(tmp_path, tokenizer):
    def compute_loss(base, seen):
        def looked_at(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            def loss(weights):
                called = lambda **given: torch.func.functional_call(model, weights, (), given)  # noqa: E731
                return base.compute_loss(self, called, inputs, num_items_in_batch=num_items_in_batch)

            weights = {name: one.detach() for name, one in model.named_parameters()}
            seen.notes += [one.norm().item() for one in torch.func.grad(loss)(weights).values()]
            return base.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)

        return looked_at

    model = make_llama(tokenizer, attn_implementation="eager")
    own, other = twins(tmp_path, tokenizer, model=model, subclass=made_of(compute_loss=compute_loss))
    assert_same(own, other)
    assert own.notes == pytest.approx(other.notes, rel=1e-4)


@pytest.mark.parametrize("returned", [None, 1.5, torch.ones(2)])
def test_a_training_step_that_returns_no_loss_is_named(tmp_path, tokenizer, returned):
    class Mine(SFTTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            super().training_step(model, inputs, num_items_in_batch)
            return returned

    with pytest.raises(SFTCoreError, match=r"training_step returned .*not the loss of its batch"):
        trainer_of(tmp_path, tokenizer, Mine).train()


def test_a_loss_that_is_not_finite_is_found_behind_a_step_of_ones_own(tmp_path, tokenizer):
    class Mine(SFTTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            self.accelerator.backward(self.compute_loss(model, self._prepare_inputs(inputs)))
            return torch.tensor(float("nan"))

    with pytest.raises(SFTCoreError, match="the loss is NaN or Inf, on "):
        trainer_of(tmp_path, tokenizer, Mine).train()


def test_packed_documents_are_apart_for_a_loss_that_calls_the_model_itself(tmp_path, tokenizer):
    """OPT needs an explicit mask: restarting positions alone would show a document its neighbours."""
    losses = []
    for kind in (SFTTrainer, subclasses.made_of("alone")(SFTTrainer, None)):
        model = build("OPT")
        model.resize_token_embeddings(len(tokenizer))
        trainer = trainer_of(tmp_path, tokenizer, kind, model, packing=True, max_length=64, max_steps=1)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize("takes", [True, False])
def test_a_loss_that_is_a_mean_is_divided_by_the_micro_batches_where_transformers_does(tmp_path, tokenizer, takes):
    def compute_loss(base, seen):
        def mean(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

        return mean

    model = make_llama(tokenizer)
    type(model).accepts_loss_kwargs = takes
    try:
        own, other = twins(
            tmp_path, tokenizer, model=model, gradient_accumulation_steps=2, subclass=made_of(compute_loss=compute_loss)
        )
        plain = twins(tmp_path, tokenizer, model=model, gradient_accumulation_steps=2)[0]
    finally:
        del type(model).accepts_loss_kwargs
    assert_same(own, other)
    assert plain.losses[0] == pytest.approx(own.losses[0] / (2 if takes else 1), rel=0.05)


# --- The table --------------------------------------------------------------------------------------------------------
def own_sampler(base, seen):
    return lambda self, *_, **__: torch.utils.data.SequentialSampler(self.train_dataset)


def own_train_loader(base, seen):
    return lambda self: torch.utils.data.DataLoader(
        self.train_dataset, batch_size=self.args.per_device_train_batch_size, collate_fn=self.data_collator
    )


def own_prepare_inputs(base, seen):
    return lambda self, inputs: {name: one.to(self.args.device) for name, one in inputs.items()}


def own_scheduler(base, seen):
    def create_scheduler(self, num_training_steps, optimizer=None):
        optimizer = self.optimizer if optimizer is None else optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        return self.lr_scheduler

    return create_scheduler


def own_log(base, seen):
    def log(self, logs, *_, **__):
        self.state.log_history.append({**logs, "step": self.state.global_step})

    return log


def own_decay(base, seen):
    return lambda self, model: [name for name, _ in model.named_parameters() if "mlp" in name]


IN_TRAINING = {
    "compute_loss": lambda base, seen: subclasses.alone(base, seen)["compute_loss"],
    "training_step": lambda base, seen: subclasses.step(base, seen)["training_step"],
    "get_batch_samples": lambda base, seen: subclasses.batches(base, seen)["get_batch_samples"],
    "get_train_dataloader": own_train_loader,
    "_get_train_sampler": own_sampler,
    "create_optimizer": lambda base, seen: subclasses.create_optimizer(base, seen)["create_optimizer"],
    "create_scheduler": own_scheduler,
    "get_decay_parameter_names": own_decay,
    "_prepare_inputs": own_prepare_inputs,
    "log": own_log,
}


@pytest.mark.parametrize("name", [*IN_TRAINING])
def test_gradients_and_losses_are_those_of_transformers_with_the_same_method(tmp_path, tokenizer, name):
    reads_data = name in ("get_train_dataloader", "_get_train_sampler")

    def subclass(base, seen):
        # the other run is given the batches that this one has taken, in their order
        if reads_data and base is not SFTTrainer:
            return base
        return made_of(**{name: IN_TRAINING[name]})(base, seen)

    own, other = twins(tmp_path, tokenizer, subclass=subclass, weight_decay=0.1, plain={"weight_decay": 0.1})
    assert_same(own, other)
    assert own.losses == pytest.approx(other.losses, abs=1e-5)
    assert own.logs[0].keys() >= {"loss", "grad_norm", "learning_rate"}
    gives_up = {"compute_loss", "log"}
    assert ("mean_token_accuracy" in own.logs[0]) == (name not in gives_up)


def test_an_evaluation_of_ones_own_gives_the_loss_of_ours(tmp_path, tokenizer):
    def step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), outputs.logits, inputs["labels"]

    def loader(self, eval_dataset=None):
        return torch.utils.data.DataLoader(self.eval_dataset, batch_size=2, collate_fn=self.data_collator)

    def evaluate(self, *_, **__):
        return self.evaluation_loop(self.get_eval_dataloader(), "mine", prediction_loss_only=True).metrics

    def predict(self, dataset, *_, **__):
        return self.evaluation_loop(self.get_test_dataloader(dataset), "mine", metric_key_prefix="test")

    def save_model(self, output_dir=None, _internal_call=False):
        self.model.save_pretrained(output_dir or self.args.output_dir)

    plain = trainer_of(tmp_path, tokenizer)
    wanted = plain.evaluate()["eval_loss"]
    methods = {"prediction_step": step, "get_eval_dataloader": loader, "evaluate": evaluate, "predict": predict,
               "save_model": save_model}  # fmt: skip
    for name, method in methods.items():
        trainer = trainer_of(tmp_path, tokenizer, type("Mine", (SFTTrainer,), {name: method}))
        assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted, abs=1e-5), name
        if name == "predict":
            assert trainer.predict(trainer.eval_dataset).metrics["test_loss"] == pytest.approx(wanted, abs=1e-5)
        if name == "save_model":
            trainer.save_model(tmp_path / "saved")
            assert (tmp_path / "saved" / "model.safetensors").is_file()
    assert methods.keys() == set(IN_EVALUATION)


IN_EVALUATION = "prediction_step", "get_eval_dataloader", "evaluate", "predict", "save_model"


def test_the_table_names_the_methods_that_are_tried_here():
    rows = [line.split("|")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == {*IN_TRAINING, *IN_EVALUATION}


@pytest.mark.slow
def test_a_run_with_a_loader_and_a_step_of_ones_own_resumes(tmp_path, tokenizer):
    kind = made_of(get_train_dataloader=own_train_loader, training_step=IN_TRAINING["training_step"])(SFTTrainer, None)
    fields = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "lr_scheduler_type": "linear"}
    whole = trainer_of(tmp_path / "a", tokenizer, kind, **fields)
    whole.train()
    again = trainer_of(tmp_path / "a", tokenizer, kind, **fields)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for name, weight in whole.model.named_parameters():
        torch.testing.assert_close(again.model.get_parameter(name), weight, rtol=0, atol=0)
