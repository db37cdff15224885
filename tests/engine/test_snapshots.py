"""pytest tests/engine/test_snapshots.py: models of the hub, from its cache and where it says no.

The cache is laid out by hand as huggingface_hub documents it: refs/main holds a commit, and
snapshots/<commit> has its files.
"""

import functools
import time
from types import SimpleNamespace

import httpx2
import huggingface_hub
import pytest
from conftest import tiny
from huggingface_hub.errors import HfHubHTTPError
from small import small_tokenizer

from engine import models, snapshots
from support.cli import UserError

NAME = "owner/name"
OLD = "a" * 40
NEW = "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path / "models--owner--name"


@pytest.fixture
def hub(monkeypatch):
    """hub(answer) sets what the hub says when it is asked for a model: a commit, or an error."""

    def set_answer(answer):
        def model_info(self, repository, **options):
            if isinstance(answer, Exception):
                raise answer
            return SimpleNamespace(sha=answer)

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", model_info)

    set_answer(ConnectionError("no route"))
    return set_answer


def refusal(status):
    request = httpx2.Request("GET", "https://hub/api/models/owner/name")
    response = httpx2.Response(status, request=request)
    return HfHubHTTPError(f"{status} Client Error", response=response)


def fill(cache, commit, is_main=True):
    """Put a whole model into the cache."""
    folder = cache / "snapshots" / commit
    tiny().save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    (cache / "refs").mkdir(exist_ok=True)
    if is_main:
        (cache / "refs" / "main").write_text(commit)
    return folder


# ---- from the cache ------------------------------------------------------------------------------


def test_without_a_hub_a_model_comes_from_the_cache_and_is_known_by_its_commit(cache, hub, capsys):
    folder = fill(cache, OLD)
    choice = models.find(NAME, "cpu")
    assert choice.fingerprint == f"commit:{OLD}"
    assert choice.source == str(folder)
    assert len(choice.tokenizer) == 500
    assert models.load_model(choice).name_or_path == NAME
    assert f"using the cached {NAME}, commit {OLD[:12]}" in capsys.readouterr().err


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 502, 503, 504])
def test_whatever_the_hub_answers_what_is_cached_is_used(status, cache, hub):
    fill(cache, OLD)
    hub(refusal(status))
    assert models.find(NAME, "cpu").fingerprint == f"commit:{OLD}"


def test_the_main_branch_comes_before_other_commits(cache, hub):
    fill(cache, OLD)
    fill(cache, NEW, is_main=False)
    assert models.find(NAME, "cpu").fingerprint == f"commit:{OLD}"
    (cache / "refs" / "main").write_text(NEW)
    assert models.find(NAME, "cpu").fingerprint == f"commit:{NEW}"


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_snapshot_that_is_not_whole_is_passed_over(missing, cache, hub):
    """As after a download of a newer commit that was cut."""
    fill(cache, OLD, is_main=False)
    (fill(cache, NEW) / missing).unlink()
    assert models.find(NAME, "cpu").fingerprint == f"commit:{OLD}"


def test_a_snapshot_that_lacks_a_part_of_the_weights_is_passed_over(cache, hub):
    folder = fill(cache, OLD)
    (folder / "model.safetensors").unlink()
    tiny().save_pretrained(folder, max_shard_size="20KB")
    assert models.find(NAME, "cpu").fingerprint == f"commit:{OLD}"
    sorted(folder.glob("*.safetensors"))[0].unlink()
    with pytest.raises(UserError, match="the hub cannot be reached"):
        models.find(NAME, "cpu")


def test_other_repositories_in_the_cache_are_not_taken(cache, hub):
    fill(cache.with_name("models--owner--name2"), OLD)
    fill(cache.with_name("datasets--owner--name"), OLD)
    with pytest.raises(UserError, match="cannot load the model owner/name"):
        models.find(NAME, "cpu")


def test_a_damaged_file_of_the_cache_says_what_to_remove(cache, hub):
    (fill(cache, OLD) / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=f"damaged, remove the folder {cache} and run again"):
        models.load_model(models.find(NAME, "cpu"))


# ---- where the hub says no -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, problem",
    [
        (ConnectionError("no route"), "the hub cannot be reached: check the network"),
        (httpx2.ConnectTimeout("slow"), "the hub cannot be reached: check the network"),
        (ValueError("no JSON"), "the hub cannot be reached: check the network"),
        (refusal(429), "the hub cannot be reached, it answers 429: try again later"),
        (refusal(500), "the hub cannot be reached, it answers 500: try again later"),
        (refusal(503), "the hub cannot be reached, it answers 503: try again later"),
        (refusal(401), "the hub answers 401: check the name.*accept its licence.*hf auth login"),
        (refusal(403), "the hub answers 403: check the name.*accept its licence.*hf auth login"),
        (refusal(404), "the hub answers 404: check the name"),
        (OSError(28, "No space left on device"), "the hub's cache cannot be written .*make room"),
    ],
)
def test_what_is_not_cached_is_one_sentence(answer, problem, cache, hub):
    hub(answer)
    with pytest.raises(UserError, match=f"cannot load the model owner/name .{problem}") as raised:
        models.find(NAME, "cpu")
    assert str(raised.value).endswith("; smollm2-135m needs no hub")
    assert "\n" not in str(raised.value)


def test_a_model_of_ours_is_asked_for_by_its_repository(cache, hub):
    with pytest.raises(UserError, match="cannot load the model Qwen/Qwen3-4B-Base .the hub cannot"):
        models.find("qwen3-4b", "cpu")


def test_a_name_that_the_hub_does_not_allow_is_one_sentence(cache):
    with pytest.raises(UserError, match="no repository of the hub can have that name"):
        models.find("owner/na--me", "cpu")


def test_a_hub_that_does_not_answer_is_given_up_in_time(cache, monkeypatch):
    def never(self, repository, **options):
        time.sleep(60)

    impatient = functools.partial(snapshots.within_seconds, seconds=0.5)
    monkeypatch.setattr(snapshots, "within_seconds", impatient)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", never)
    start = time.monotonic()
    with pytest.raises(UserError, match="the hub cannot be reached: check the network"):
        models.find(NAME, "cpu")
    assert time.monotonic() - start < 2
    assert snapshots.ANSWER_SECONDS < 5, "without the impatience of this test"


def test_a_download_that_breaks_off_says_what_to_do(cache, hub, monkeypatch):
    def cut(*arguments, **options):
        if options.get("local_files_only"):
            raise snapshots.LocalEntryNotFoundError("not there")
        raise httpx2.RemoteProtocolError("peer closed connection")

    monkeypatch.setattr(snapshots, "snapshot_download", cut)
    hub(NEW)
    with pytest.raises(UserError, match="the download broke off: run the same command again"):
        models.find(NAME, "cpu")


# ---- what is fetched -----------------------------------------------------------------------------


def test_only_what_transformers_reads_is_fetched():
    """Names from repositories that hold their weights in several formats."""
    wanted = {
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "chat_template.jinja",
    }
    unwanted = {
        ".gitattributes",
        "README.md",
        "adapter_model.safetensors",
        "consolidated.00.pth",
        "consolidated.safetensors",
        "flax_model.msgpack",
        "model.Q4_K_M.gguf",
        "model.fp16.safetensors",
        "modeling_evil.py",
        "onnx/config.json",
        "onnx/model.onnx",
        "original/consolidated.00.pth",
        "original/params.json",
        "pytorch_model.bin",
        "tf_model.h5",
    }
    selected = huggingface_hub.utils.filter_repo_objects(wanted | unwanted, **snapshots.selection())
    assert set(selected) == wanted
