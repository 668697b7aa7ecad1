"""Loaders and adapters that give another model than they were asked for: one line names them, or the run says so."""

from __future__ import annotations

import pytest

from tests.train.plugin_code import ADAPTER, KERNEL, LOADER, PROCESSOR, SAVE, hook

OWN = "m = transformers.AutoModelForCausalLM.from_pretrained(request.name, dtype=request.dtype, **options.kwargs)"
BARE = (
    "class Bare(torch.nn.Module):", "    def get_input_embeddings(self): return None", "own, m = m, Bare()",
)  # fmt: skip
WRAP = (
    "class Wrap(torch.nn.Module):", "    def __init__(self):", "        super().__init__(); self.inner = m",
    "    def forward(self, *args, **options): return self.inner(*args, **options)", "    def __getattr__(self, name):",
    "        try: return super().__getattr__(name)",
    "        except AttributeError: return getattr(super().__getattr__('inner'), name)",
)  # fmt: skip


def loads(*lines: str, processor: str = PROCESSOR) -> tuple[str, str]:
    """A loader that does something to the model before it hands it over."""
    return "loader", hook(
        LOADER, "import torch, transformers", OWN, *lines, "return LoadedModel(m, None, request)"
    ) + processor


def made(*lines: str) -> tuple[str, str]:
    """A loader that makes a model by the saved configuration, with other values."""
    config = "c = transformers.AutoConfig.from_pretrained(request.name)"
    model = "m = transformers.AutoModelForCausalLM.from_config(c, dtype=torch.float32)"
    return "loader", hook(
        LOADER, "import torch, transformers", config, *lines, model, "return LoadedModel(m, None, request)"
    ) + PROCESSOR  # fmt: skip


def tokenizer(answer: str) -> tuple[str, str]:
    return loads(processor=hook("load_processor(self, request)", "import tokenizers, transformers", f"return {answer}"))


def adapts(*lines: str) -> tuple[str, str]:
    return "adapter", hook(ADAPTER, "import attrs, copy, torch", "m = loaded.model", *lines, "return loaded")


def gives(model: str, *lines: str) -> tuple[str, str]:
    return adapts("import transformers", *lines, f"return attrs.evolve(loaded, model={model})")


def saves(*lines: str) -> tuple[str, str]:
    return "adapter", hook(ADAPTER, "return loaded") + hook(SAVE, *lines)


def asks(options: str) -> tuple[str, str]:
    body = hook("load_options(self, request)", f"return LoadOptions({options})")
    return "kernel", body + hook(KERNEL, "return PatchReport()")


WRONG = {
    "loader: other width": (made("c.hidden_size = 16"), "its model has hidden_size 16, and"),
    "loader: fewer tokens": (made("c.vocab_size = 50"), "its model has vocab_size 50"),
    "loader: more tokens": (made("c.vocab_size += 64"), "its weights are not those that are saved"),
    "loader: more layers": (made("c.num_hidden_layers = 2"), "num_hidden_layers 2"),
    "loader: other heads": (made("c.num_attention_heads = c.num_key_value_heads = 1"), "num_attention_heads 1"),
    "loader: another class": (
        made("c = transformers.GPT2Config(vocab_size=c.vocab_size, n_embd=8, n_layer=1, n_head=2)"), "model_type gpt2"),
    "loader: random weights": (made(), "its weights are not those that are saved"),
    "loader: zeros": (loads("for one in m.parameters(): one.data.zero_()"), "its weights are not those"),
    "loader: layers dropped": (loads("m.model.layers = m.model.layers[:0]"), "0 of the 1 layers that are saved"),
    "loader: no head": (loads("m = m.model"), "LlamaModel has no head"),
    "loader: no weights": (loads("m = m.to('meta')"), "all are on the device meta"),
    "loader: NaN": (loads("m.model.norm.weight.data.fill_(float('nan'))"), "hidden states are NaN"),
    "loader: a config that is a dict": (
        loads(*BARE, "m.config = {}"), "has a dict as its config"),
    "loader: no embeddings": (
        loads(*BARE, "m.config = own.config"), "has no embeddings of tokens"),
    "loader: embeddings raise": (
        loads("class Bare(torch.nn.Module):", "    def get_input_embeddings(self): raise KeyError('emb')", "own = m",
              "m = Bare()", "m.config = own.config"), "KeyError: 'emb'"),
    "loader: its own options": (
        (loads()[0], loads()[1] + hook("load_options(self, request)", "return LoadOptions({'surprise': 1})")),
        'gives "surprise", which from_pretrained does not know'),
    "loader: a text for a tokenizer": (tokenizer("'tokenizer'"), "returned str; expected a tokenizer"),
    "loader: a class for a tokenizer": (tokenizer("transformers.AutoTokenizer"), "returned the class AutoTokenizer"),
    "loader: a function for a tokenizer": (tokenizer("lambda text: [1]"), "returned function; expected a tokenizer"),
    "loader: a tokenizer of another library": (
        tokenizer("tokenizers.Tokenizer.from_file(request.name + '/tokenizer.json')"), "returned Tokenizer; expected"),
    "options: unknown": (asks("{'surprise': 1}"), 'its load_options ('),
    "options: whose code may run": (asks("{'trust_remote_code': True}"), "is not for it to say"),
    "options: another revision": (asks("{'revision': 'x'}"), "gives revision='x', and the run asks for None"),
    "options: another dtype": (asks("{'torch_dtype': 'bfloat16'}"), "gives torch_dtype='bfloat16'"),
    "options: another name": (asks("{'pretrained_model_name_or_path': 'x'}"), "is not for it to say"),
    "options: a place that there is not": (asks("{'device_map': 'nowhere'}"), "(device_map)"),
    "options: another answer of transformers": (asks("{'output_loading_info': True}"), "(output_loading_info)"),
    "options: another file": (asks("{'variant': 'x'}"), "(variant)"),
    "adapter: layers dropped": (adapts("m.model.layers = m.model.layers[:0]"), "lacks 1 of 1 layers"),
    "adapter: a layer replaced": (
        adapts("class Same(torch.nn.Module):", "    def forward(self, x, *args, **options): return x",
               "m.model.layers[0] = Same()"), "lacks 1 of 1 layers, such as model.layers.0"),
    "adapter: fewer layers by the configuration": (
        adapts("m.config.num_hidden_layers = 0"), "the configuration's num_hidden_layers changed"),
    "adapter: around a layer": (
        adapts("m.model.layers[0].forward = lambda x, *args, **options: x",
               "for name, one in m.named_parameters(): one.requires_grad_(name == 'model.norm.weight')"),
        "1 of 1 layers, such as model.layers.0, have no part in the logits"),
    "adapter: another model": (
        gives("transformers.AutoModelForCausalLM.from_config(m.config)"), "none of the 12 weights"),
    "adapter: the model without its head": (gives("m.model"), "lacks lm_head.weight"),
    "adapter: new embeddings": (
        adapts("m.set_input_embeddings(torch.nn.Embedding(*m.get_input_embeddings().weight.shape))"),
        "lacks model.embed_tokens.weight"),
    "adapter: a new head": (
        adapts("m.lm_head = torch.nn.Linear(8, m.config.vocab_size, bias=False)"), "lacks lm_head.weight"),
    "adapter: all weights anew": (adapts("for one in m.parameters(): one.data.normal_()"), "it changed all"),
    "adapter: another tokenizer": (
        adapts("t = copy.deepcopy(loaded.processor)", "t.add_tokens(['zzz'])",
               "return attrs.evolve(loaded, processor=t)"), "the tokenizer's vocabulary changed"),
    "adapter: another template": (
        adapts("loaded.processor.chat_template = 'x'"), "the tokenizer's chat_template changed"),
    "adapter: a weight without numbers": (
        adapts("m.model.norm.extra = torch.nn.Parameter(torch.zeros(2, device='meta'))"), "is on the device meta"),
    "adapter: junk as the configuration": (
        saves("open(folder + '/config.json', 'w').write('{}')"), "leaves config.json damaged: it names no model_type"),
    "adapter: half a configuration": (
        saves("open(folder + '/config.json', 'w').write('{')"), "leaves config.json damaged"),
    "adapter: half the weights": (
        saves("import os", "os.truncate(folder + '/model.safetensors', 900)"), "leaves model.safetensors damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_whoever_gives_another_model_is_named(train, name):
    (kind, body), words = WRONG[name]
    code, said = train(kind, body)
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert code == 1
    assert f'{kind} "bad@acme_faulty' in line
    assert words in line
    assert "Traceback" not in said
    assert said.rstrip().splitlines()[-1] == line


SAID = {
    "a new head": (loads("m.lm_head.weight.data.normal_()"), "weights that were compared, such as lm_head.weight, are"),
    "an argument of the configuration": (asks("{'hidden_act': 'relu'}"), "asks for hidden_act='relu' in the model's"),
    "one weight anew": (
        adapts("m.model.layers[0].mlp.up_proj.weight.data.zero_()"), "changed 1 of 12 weights of the model"),
    "half the precision": (adapts("m.bfloat16()"), "from float32 into bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_what_may_be_meant_is_said(train, name):
    (kind, body), words = SAID[name]
    code, said = train(kind, body)
    assert code == 0, said
    (line,) = [line for line in said.splitlines() if words in line]
    assert f'{kind} "bad@acme_faulty' in line


RIGHT = {
    "a loader's own wrapper": loads(*WRAP, "m = Wrap()"),
    "a loader that pads the vocabulary": loads("m.resize_token_embeddings(m.config.vocab_size + 3)"),
    "an argument with which nothing changes": asks("{'low_cpu_mem_usage': True}"),
    "an adapter's own wrapper": gives("Wrap()", *WRAP),
    "an adapter around a copy": gives("copy.deepcopy(m)"),
    "an adapter that trains one vector": adapts("m.requires_grad_(False)", "m.model.norm.weight.requires_grad_(True)"),
    "an adapter by factors in the place of matrices": adapts(
        "class Factors(torch.nn.Module):", "    def __init__(self, base):", "        super().__init__()",
        "        u, s, v = torch.linalg.svd(base.weight.detach(), full_matrices=False)",
        "        self.u, self.v = torch.nn.Parameter(u * s), torch.nn.Parameter(v)",
        "    def forward(self, x): return x @ self.v.T @ self.u.T", "m.requires_grad_(False)",
        "for layer in m.model.layers:", "    for part in (layer.self_attn, layer.mlp):",
        "        for name, one in [*part.named_children()]:",
        "            if isinstance(one, torch.nn.Linear): setattr(part, name, Factors(one))"),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_what_keeps_the_model_trains(train, name):
    code, said = train(*RIGHT[name])
    assert code == 0, said
