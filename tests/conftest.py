"""Shared fixtures: tiny random models, and the bundled model and data, fetched once."""

import functools
import os
from dataclasses import replace
from typing import NamedTuple

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # processes share the cores, and what they start too
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import pytest
import torch
import transformers
from samples import folder

import data
import ia2
import lora
from engine import cpu, models
from support import cli, records

# transformers' name of a family: what it has that others lack
FAMILIES = {
    "Qwen3": {"head_dim": 8},  # norms of queries and keys
    "Llama": {"tie_word_embeddings": True},
    "Qwen2": {},  # biases on queries and keys
    "Mistral": {"sliding_window": 8},  # every layer slides
    "Gemma2": {  # a norm after attention, capped logits
        "head_dim": 8,
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 2.0,
    },
    "Gemma3Text": {  # sliding and full attention in turns
        "head_dim": 8,
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "Olmo2": {},  # norms after attention
    "Granite": {  # its own scales everywhere
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
        "logits_scaling": 4.0,
        "embedding_multiplier": 2.0,
    },
}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # grouped queries
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,  # large enough that random models disagree
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


# ---- tiny random models --------------------------------------------------------------------------


def tiny(family="Qwen3", dtype=torch.float32, vocabulary=500, **settings):
    """A random model of a few thousand weights, the same at every call."""
    torch.manual_seed(0)
    config_class = getattr(transformers, f"{family}Config")
    model_class = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")
    config = config_class(**{**SMALL, **FAMILIES[family], "vocab_size": vocabulary, **settings})
    return model_class(config).to(dtype).eval().requires_grad_(False)


@pytest.fixture(params=["Qwen3", "Llama"])
def tiny_model(request):
    return tiny(request.param)


def randomise(model, scale=0.05, seed=1):
    """Give the adapter a B that is not zero, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora.layers(model).values():
        layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) * scale)


def random_prompts(lengths, seed=0):
    """A list of random token ids for each length; the special ones do not occur."""
    generator = torch.Generator().manual_seed(seed)
    prompts = []
    for length in lengths:
        prompts.append(torch.randint(3, 500, (length,), generator=generator).tolist())
    return prompts


def alone(model, tokens, outputs):
    """(attention outputs (L, G, d), logits (G, V)) of one example, straight through transformers,
    whole and without a cache.
    """
    kept, handles = [], []

    def keep(module, inputs, output):
        kept.append(output[0])

    for layer in model.get_decoder().layers:
        handles.append(layer.self_attn.register_forward_hook(keep))
    logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
    for handle in handles:
        handle.remove()
    return torch.stack([output[0, -outputs:] for output in kept]), logits[0, -outputs:]


def joined(demos, query):
    """The text of a prompt."""
    return "\n\n".join([*(demo.query + demo.response for demo in demos), query])


# ---- the bundled model and data ------------------------------------------------------------------


@pytest.fixture(scope="session")
def tokenizer():
    return models.find("smollm2-135m", "cpu").tokenizer


@pytest.fixture(scope="session")
def plain_bundled():
    """The bundled model without an adapter, as fast as the mains run it."""
    model = models.load_model(models.find("smollm2-135m", "cpu"))
    cpu.speed_up(model)
    return model


@pytest.fixture
def bundled(plain_bundled):
    """The bundled model with a fresh adapter, which is taken off afterwards; the weights stay."""
    lora.add(plain_bundled)
    yield plain_bundled
    for name, layer in lora.layers(plain_bundled).items():
        plain_bundled.set_submodule(name, layer.linear)


@pytest.fixture(scope="session")
def movies(tokenizer):
    """Short ones of the bundled reviews, worded for the bundled model, with 40 test queries."""
    options = data.Options(default_labels="words", plain=True)
    movies = data.load("movies", tokenizer, options)
    short = replace(movies, pool=short_ones(movies.pool), test=short_ones(movies.test))
    return data.draw_test(short, 40)


def short_ones(examples):
    """Up to 24 tokens or so, of different lengths: real texts at a third of the time."""
    return [example for example in examples if len(example.query) < 90]


@pytest.fixture(scope="session")
def few_shot(movies):
    return data.few_shot_set(movies.pool, 4, balanced=True)


# ---- the command line on a tiny model ------------------------------------------------------------


@pytest.fixture(scope="session")
def place(tmp_path_factory, tokenizer):
    """A folder with a tiny model, its tokenizer and small copies of the benchmarks."""
    path = tmp_path_factory.mktemp("place")
    tiny(vocabulary=len(tokenizer)).save_pretrained(path / "tiny")
    tokenizer.save_pretrained(path / "tiny")
    folder(path / "bench")
    return path


class Ran(NamedTuple):
    """What a command left: its exit code, what it printed, and its result rows if it went well."""

    code: int
    out: str
    err: str
    rows: list[dict]


@pytest.fixture
def few_unrelated_texts(monkeypatch):
    """Reading 200 texts after each method would take most of the time."""
    few = functools.partial(data.unrelated_prompts, count=10)
    monkeypatch.setattr(data, "unrelated_prompts", few)


@pytest.fixture
def call(place, tmp_path, capsys, monkeypatch, few_unrelated_texts):
    """call(*options, main=ia2.main) runs a command on the tiny model and the small benchmarks.

    It writes into tmp_path / out, unless the command has no --out of its own.
    """

    def run(*options, main=ia2.main, out="out", quick=("--epochs", "2", "--test", "6")) -> Ran:
        words = ["--data-dir", place / "bench", "--model", place / "tiny"]
        if main.__module__ != "lab.adapters":
            words += ["--out", tmp_path / out]
        words += [*quick, *options]
        monkeypatch.setattr("sys.argv", ["ia2.py", *map(str, words)])
        try:
            code = cli.run_main(main, lora.LoRAError)
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        rows = records.read_rows(tmp_path / out / "results.jsonl") if code == 0 else []
        return Ran(code, printed.out, printed.err, rows)

    return run
