"""Gradients and dtypes under FSDP, in two processes started by torchrun: prints one line of JSON from the first."""

import copy
import json
import os

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from sftcore import TokenLoss
from sftcore.model.bound_loss import REQUEST, LossRequest, bind_loss

LOSS = TokenLoss(lambda log_probs: -log_probs, chunk=8)


def backward(model, ids, scale=1):
    request = LossRequest(ids, torch.tensor(46.0))
    loss = request.exact(model(input_ids=ids, use_cache=False, **{REQUEST: request}))["loss"]
    (loss * scale).backward()


def gap(*, apart: bool, lora: bool) -> dict[str, object]:
    """The largest gap of a gradient to that of one process, of its size; and how often the head was called."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    )
    if lora:
        get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    ids = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(5))
    whole = copy.deepcopy(model)
    bind_loss(whole, LOSS)
    backward(whole, ids)
    bind_loss(model, LOSS)
    mesh = init_device_mesh("cpu", (2,))
    for module in (*model.model.layers, *([model.lm_head] if apart else []), model):
        fully_shard(module, mesh=mesh)
    rank, calls = dist.get_rank(), []
    model.lm_head.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    backward(model, ids[rank : rank + 1], scale=2)  # FSDP takes the mean over ranks
    gaps = [
        float((ours.grad.full_tensor() - theirs.grad).abs().max() / theirs.grad.abs().max())
        for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True)
        if theirs.grad is not None
    ]
    return {"gap": max(gaps), "count": len(gaps), "calls": calls}


class Recording:
    """A loss that remembers what it was given, and what it gave."""

    def __call__(self, hidden, head, labels, weights, num_items):
        output = LOSS(hidden, head, labels, weights, num_items)
        self.items, self.weights, self.loss = num_items.item(), weights.tolist(), output.loss.detach().clone()
        return output


def by_fsdp2(model):
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.bfloat16)
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)), mp_policy=half)
    return model


def by_fsdp1(model):
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({LlamaDecoderLayer}),
        mixed_precision=MixedPrecision(torch.bfloat16, torch.float32, torch.bfloat16, cast_forward_inputs=True),
        device_id=torch.device("cpu"),
        use_orig_params=True,
    )


def arrived(shard) -> dict[str, object]:
    """What a loss gets and gives under FSDP that casts to bfloat16, and what FSDP makes of a tensor beside it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    )
    loss, passed = Recording(), {}
    bind_loss(model, loss)
    sharded = shard(model)
    # FSDP 2 casts in a hook of its own, and FSDP 1 around the whole call
    model.lm_head.register_forward_pre_hook(lambda module, args: passed.update(head=args[0].dtype))
    model.model.register_forward_pre_hook(lambda module, args, kwargs: passed.update(kwargs), with_kwargs=True)
    ids = torch.randint(3, 96, (1, 24), generator=torch.Generator().manual_seed(5))
    weights = torch.linspace(0.1, 0.9, 24)[None]
    request = LossRequest(ids, torch.tensor(257.0), weights)
    found = request.exact(sharded(input_ids=ids, use_cache=False, beside=torch.tensor(257.0), **{REQUEST: request}))
    found["loss"].backward()
    return {
        "items": loss.items,
        "weights": loss.weights == weights[0, 1:].tolist(),
        "loss": found["loss"].item() == loss.loss.item() and found["loss"].dtype == torch.float32,
        "rounded": float(found["loss"].bfloat16()) != found["loss"].item(),
        "beside": float(passed["beside"]),
        "head": str(passed["head"]),
        "trains": any(one.grad is not None for one in model.parameters()),
    }


if __name__ == "__main__":
    dist.init_process_group("gloo")
    found = {
        f"{'apart' if apart else 'root'}-{'lora' if lora else 'whole'}": gap(apart=apart, lora=lora)
        for apart in (False, True)
        for lora in (False, True)
    }
    exact = {shard.__name__: arrived(shard) for shard in (by_fsdp1, by_fsdp2)}
    if dist.get_rank() == 0:
        print(json.dumps({"gaps": found, "arrived": exact}), flush=True)
    dist.barrier()  # neither leaves while the other still talks to it
    os._exit(0)  # gloo's threads now and then abort a process that takes its groups down (torch 2.13)
