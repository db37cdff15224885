"""Shared fixtures: the bundled model and data (fetched once into the cache), and tiny random models of two families."""
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

import data
import ia2
import lora
import model as base

CPU = torch.device("cpu")


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
