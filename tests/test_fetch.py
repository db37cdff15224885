"""pytest tests/test_fetch.py: downloads that are wrong, builds that are killed, caches that cannot be written."""
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fetch
from fetch import UserError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IA2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_members_of_archives_are_read_up_to_their_size():
    assert fetch.read_member(io.BytesIO(b"1234"), 4) == b"1234"
    with pytest.raises(UserError, match="larger than 3 bytes"):
        fetch.read_member(io.BytesIO(b"1234"), 3)


def test_a_wrong_hash_is_refused(cache, tmp_path, monkeypatch):
    pins = tmp_path / "pins.txt"
    pins.write_text("vaderSentiment==3.3.2 --hash=sha256:" + "0" * 64 + "\n")
    monkeypatch.setattr(fetch, "PINS", pins)
    with pytest.raises(UserError, match="sha256 of the downloaded vaderSentiment is not the pinned 000"):
        fetch.download("vaderSentiment", tmp_path)


def test_a_package_that_cannot_be_fetched_is_one_sentence(cache, tmp_path, monkeypatch):
    for name, value in (("PIP_INDEX_URL", "http://127.0.0.1:9"), ("PIP_EXTRA_INDEX_URL", ""), ("PIP_RETRIES", "0"),
                        ("PIP_FIND_LINKS", ""), ("PIP_CONFIG_FILE", os.devnull), ("PIP_NO_CACHE_DIR", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="pip could not download vaderSentiment==3.3.2 .*check the network"):
        fetch.download("vaderSentiment", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_fails_leaves_nothing_and_one_that_ends_is_kept(cache):
    def fail(folder):
        (folder / "half").write_text("x")
        raise UserError("no")
    with pytest.raises(UserError):
        fetch.cached("thing", fail)
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []
    assert (fetch.cached("thing", lambda folder: (folder / "whole").write_text("x")) / "whole").read_text() == "x"
    fetch.cached("thing", fail)  # it is there, so nothing is built


BUILD = """
import sys, time
sys.path.insert(0, {root!r})
import fetch
def build(folder):
    (folder / "first").write_text("x")
    print("started", flush=True)
    time.sleep({seconds})
    (folder / "second").write_text("x")
print(fetch.cached("thing", build))
"""


def test_a_build_killed_in_the_middle_is_done_again(cache):
    process = subprocess.Popen([sys.executable, "-c", BUILD.format(root=str(ROOT), seconds=60)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cache / "thing").exists() and list(cache.glob(".partial-thing-*"))
    target = fetch.cached("thing", lambda folder: (folder / "second").write_text("y"))
    assert not (target / "first").exists() and (target / "second").read_text() == "y" and not list(cache.glob(".partial-*"))


@pytest.mark.parametrize("damage", [lambda folder: (folder / "whole").write_text("y"), lambda folder: (folder / "whole").unlink(),
                                    lambda folder: (folder / "sha256.json").unlink()])
def test_a_damaged_folder_is_made_anew_and_an_untouched_one_is_not(damage, cache):
    build = lambda folder: (folder / "whole").write_text("x")
    folder = fetch.cached("thing", build)
    os.utime(folder / "whole")  # another time, the same bytes: hashed again and found well
    fetch.cached("thing", None)
    damage(folder)
    assert (fetch.cached("thing", build) / "whole").read_text() == "x"


def test_two_processes_build_once(cache):
    command = [sys.executable, "-c", BUILD.format(root=str(ROOT), seconds=1)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [process.communicate()[0] for process in processes]
    assert sum("started" in text for text in texts) == 1 and all(str(cache / "thing") in text for text in texts)


def test_a_cache_that_cannot_be_written_is_named(monkeypatch):
    monkeypatch.setenv("IA2_CACHE", "/proc/nowhere")
    with pytest.raises(UserError, match="cannot create the cache folder /proc/nowhere .*set IA2_CACHE"):
        fetch.cached("thing", None)
