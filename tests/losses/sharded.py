"""Gradients under FSDP2, in two processes started by torchrun: prints one line of JSON from the first."""

import copy
import json
import os

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from sftcore import TokenLoss
from sftcore.model.bound_loss import NUM_ITEMS, bind_loss

LOSS = TokenLoss(lambda log_probs: -log_probs, chunk=8)


def backward(model, ids, scale=1):
    loss = model(input_ids=ids, labels=ids, use_cache=False, **{NUM_ITEMS: torch.tensor(46.0)})["loss"]
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


if __name__ == "__main__":
    dist.init_process_group("gloo")
    found = {
        f"{'apart' if apart else 'root'}-{'lora' if lora else 'whole'}": gap(apart=apart, lora=lora)
        for apart in (False, True)
        for lora in (False, True)
    }
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    dist.barrier()  # neither leaves while the other still talks to it
    os._exit(0)  # gloo's threads now and then abort a process that takes its groups down (torch 2.13)
