"""Shared fixtures: the bundled model and data (fetched once into the cache), and tiny random models of two families."""
import pytest
import torch
from samples import folder
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

import data
import ia2
import lora
import model as base
import results
import sweep

CPU = torch.device("cpu")
TIMES = ("train_seconds", "eval_seconds", "stages", "part_of")


def tiny(family, dtype=torch.float32, vocabulary=5000, **settings):
    """A random model of a few thousand weights: `qwen3` (q_norm, k_norm) or `llama` (tied embeddings), grouped queries."""
    kind, make = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[family]
    torch.manual_seed(0)
    config = kind(**{**dict(vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=3, head_dim=8,
                            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
                            tie_word_embeddings=family == "llama", initializer_range=0.3, bos_token_id=1, eos_token_id=2,
                            attn_implementation="sdpa"), **settings})
    return make(config).to(dtype).eval().requires_grad_(False)


@pytest.fixture(params=["qwen3", "llama"])
def tiny_model(request):
    return tiny(request.param)


@pytest.fixture(scope="session")
def tokenizer():
    return base.load_tokenizer("smollm2-135m")


@pytest.fixture(scope="session")
def bundled():
    """The bundled model; tests that put an adapter on it take it off again."""
    return base.load_model("smollm2-135m", CPU)


@pytest.fixture(scope="session")
def movies():
    return data.load("movies", plain=True, style="words")


@pytest.fixture(scope="session")
def few_shot(movies):
    return data.few_shot_set(movies.pool, 4, balanced=True)


@pytest.fixture(scope="session")
def targets(bundled, tokenizer, few_shot):
    """(training targets, dev targets) of four movie snippets."""
    return ia2.few_shot_targets(bundled, tokenizer, few_shot)


@pytest.fixture
def adapted(bundled):
    """The bundled model with a fresh adapter, taken off afterwards without touching the weights."""
    lora.add(bundled)
    yield bundled
    for name, layer in lora.layers(bundled).items():
        setattr(bundled.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], layer.base)


def randomise(model, run=0, scale=0.05, seed=1):
    """Give the adapter of a run a B that is not zero."""
    generator = torch.Generator().manual_seed(seed + run)
    with torch.no_grad():
        for layer in lora.layers(model).values():
            layer.B[run].copy_(torch.randn(layer.B[run].shape, generator=generator) * scale)


def random_prompts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(3, 5000, (length,), generator=generator).tolist()) for length in lengths]


# ---- the command line on a tiny model -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def place(tmp_path_factory, tokenizer):
    """A folder with a tiny model, its tokenizer and small copies of the benchmarks."""
    path = tmp_path_factory.mktemp("place")
    tiny("qwen3", vocabulary=49152).save_pretrained(path / "tiny")
    tokenizer.save_pretrained(path / "tiny")
    folder(path / "bench")
    return path


@pytest.fixture
def call(place, tmp_path, capsys):
    """call(*options) runs the command line on the tiny model: (exit code, stdout, stderr, rows by key)."""
    def run(*options, out="out", quick=("--max-epochs", "4", "--test", "8")):
        code = sweep.main(["--dataset", "sst2", "--data-dir", str(place / "bench"), "--model", str(place / "tiny"),
                           "--out", str(tmp_path / out), *quick, *map(str, options)])
        found = capsys.readouterr()
        return code, found.out, found.err, rows_of(tmp_path / out) if code == 0 else {}
    return run


def rows_of(out):
    """The rows of a results file, {what they are about: their figures without times}; no row twice."""
    rows = results.read(out / "results.jsonl")
    named = {(row["run"], row["eval_dataset"]): {key: value for key, value in row.items() if key not in TIMES} for row in rows}
    assert len(named) == len(rows)
    return named
