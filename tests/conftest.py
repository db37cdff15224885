"""Shared fixtures: the bundled model and data, fetched once into the cache, and tiny random models."""
import os
from argparse import Namespace

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import pytest
import torch
import transformers
from samples import folder

import data
import ia2
import lora
from lab import adapters
from sources import models, offline

FAMILIES = {  # transformers' name: what it has that others lack
    "Qwen3": dict(head_dim=8),                                              # norms of queries and keys
    "Llama": dict(tie_word_embeddings=True),
    "Qwen2": dict(),                                                        # biases on queries and keys
    "Mistral": dict(sliding_window=8),                                      # every layer slides
    "Gemma2": dict(head_dim=8, sliding_window=8, query_pre_attn_scalar=8,
                   final_logit_softcapping=2.0),  # a norm after attention
    "Gemma3Text": dict(head_dim=8, sliding_window=8, query_pre_attn_scalar=8,
                       layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "Olmo2": dict(),                                                        # norms after attention
    "Granite": dict(residual_multiplier=0.5, attention_multiplier=0.3, logits_scaling=4.0,
                    embedding_multiplier=2.0),
}
ARGS = Namespace(data_dir=None, seed=0, test=200, max_tokens=None)


def tiny(family="Qwen3", dtype=torch.float32, vocabulary=500, **settings):
    """A random model of a few thousand weights, with grouped queries."""
    torch.manual_seed(0)
    name = family.removesuffix("Text")
    config = getattr(transformers, f"{family}Config" if family != "Gemma3Text" else "Gemma3TextConfig")(**{
        **dict(vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
               tie_word_embeddings=False, initializer_range=0.3,
               bos_token_id=1, eos_token_id=2, pad_token_id=0), **FAMILIES[family], **settings})
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    return model.to(dtype).eval().requires_grad_(False)


@pytest.fixture(params=["Qwen3", "Llama"])
def tiny_model(request):
    return tiny(request.param)


@pytest.fixture(scope="session")
def tokenizer():
    return models.find("smollm2-135m").tokenizer


@pytest.fixture(scope="session")
def plain_bundled():
    return models.load_model(models.find("smollm2-135m", "cpu"))


@pytest.fixture
def bundled(plain_bundled):
    """The bundled model with a fresh adapter, taken off afterwards without touching the weights."""
    lora.add(plain_bundled)
    yield plain_bundled
    for name, layer in lora.layers(plain_bundled).items():
        plain_bundled.set_submodule(name, layer.linear)


@pytest.fixture(scope="session")
def movies(tokenizer):
    return data.load("movies", tokenizer, Namespace(**{**vars(ARGS), "test": 40}), plain=True, usual="words")


@pytest.fixture(scope="session")
def few_shot(movies):
    return data.few_shot_set(movies.pool, 4, balanced=True)


def randomise(model, scale=0.05, seed=1):
    """Give the adapter a B that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora.layers(model).values():
            layer.B.copy_(torch.randn(layer.B.shape, generator=generator) * scale)


def random_prompts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 500, (length,), generator=generator).tolist() for length in lengths]


# ---- the command line on a tiny model ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def place(tmp_path_factory, tokenizer):
    """A folder with a tiny model, its tokenizer and small copies of the benchmarks."""
    path = tmp_path_factory.mktemp("place")
    tiny(vocabulary=49152).save_pretrained(path / "tiny")
    tokenizer.save_pretrained(path / "tiny")
    folder(path / "bench")
    return path


@pytest.fixture
def call(place, tmp_path, capsys, monkeypatch):
    """call(*options, main=ia2.main) runs a command on the tiny model: (exit code, stdout, stderr, rows)."""
    def run(*options, main=ia2.main, out="out", quick=("--epochs", "2", "--test", "6")):
        where = [] if main is adapters.main else ["--out", tmp_path / out]
        words = ["--data-dir", place / "bench", "--model", place / "tiny", *where, *quick, *options]
        monkeypatch.setattr("sys.argv", ["ia2.py", *map(str, words)])
        try:
            code = offline.run_main(main, lora.LoRAError)
        except SystemExit as end:
            code = end.code
        found = capsys.readouterr()
        rows = offline.read_rows(tmp_path / out / "results.jsonl") if code == 0 else []
        return code, found.out, found.err, rows
    return run
