"""pytest tests/test_faults.py: wrong input, killed processes, full disks, read-only and damaged caches, for real."""
import ctypes
import json
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bad_input import CASES, make_traps
from conftest import rows_of

import data
import sweep
from fetch import seal

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def traps(place, tokenizer):
    make_traps(place / "traps", tokenizer)
    return place / "traps"


@pytest.mark.parametrize("options, message", CASES, ids=[options for options, _ in CASES])
def test_wrong_input_is_one_line_and_exit_code_2(options, message, call, capsys, place, traps):
    try:
        code, out, err, _ = call(*options.format(place=place, traps=traps).split(), quick=("--test", "2"))
    except SystemExit as end:
        code, found = end.code, capsys.readouterr()
        out, err = found.out, found.err
    lines = [line for line in err.splitlines() if not line.startswith(("loading", "warning", "n=")) and " is a label task" not in line]
    assert code == 2 and out == "" and len(lines) == 1 and lines[0].startswith("error: "), err
    assert message in lines[0]


def test_the_table_is_long_enough():
    assert len(CASES) >= 40 and len({options for options, _ in CASES}) == len(CASES)


# ---- child processes that meet a fault ------------------------------------------------------------------------------

CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24


def obey_permissions():
    """In the child: root, too, may not write where the permissions forbid it."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def small_files(limit):
    """In the child: no file grows beyond `limit` bytes; writing on fails as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.fixture
def child(place, tmp_path):
    """child(*options) runs a small sweep in a process of its own; child.command is its command."""
    command = [sys.executable, ROOT / "ia2.py", "--dataset", "sst2", "--data-dir", place / "bench", "--model", place / "tiny",
               "--max-epochs", "2", "--test", "4", "--out", tmp_path / "out"]
    command = list(map(str, command))

    def run(*options, before=None, cache=None):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"IA2_CACHE": str(cache)} if cache else {})}
        return subprocess.run([*command, *options], capture_output=True, text=True, preexec_fn=before, env=environment,
                              check=False)
    run.command = command
    return run


def one_error(result):
    """The one line that an error is."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2 and len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    return lines[0]


@pytest.mark.parametrize("limit", [2_000, 6_000, 12_000])
def test_a_full_disk_ends_in_a_sentence_and_loses_nothing(limit, child, tmp_path):
    """2 kB is too little for the first row, 6 kB for an adapter, 12 kB for the later rows."""
    message = one_error(child(before=small_files(limit)))
    assert "File too large" in message or "cannot write" in message, message
    kept = (tmp_path / "out" / "results.jsonl").read_text() if (tmp_path / "out" / "results.jsonl").exists() else ""
    assert not kept or kept.endswith("\n")
    assert not list((tmp_path / "out").glob(".partial*"))
    assert child().returncode == 0
    assert (tmp_path / "out" / "results.jsonl").read_text().startswith(kept) and len(rows_of(tmp_path / "out")) == 5


@pytest.mark.parametrize("limit", [10**6, 2 * 10**8])
def test_a_disk_that_fills_while_the_model_is_prepared(limit, child, tmp_path):
    """1 MB is too little for the download, 200 MB for the converted weights: a sentence, and nothing is left."""
    message = one_error(child("--model", "smollm2-135m", "--methods", "base", before=small_files(limit), cache=tmp_path / "cache"))
    assert "could not download" in message if limit == 10**6 else "cannot write to the cache folder" in message
    assert not [path for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")]


def test_two_processes_on_one_folder_share_it(child, tmp_path):
    """Both end well, with every row once and every adapter whole."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([*child.command, "--sets", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                  env=environment) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] and len(rows_of(tmp_path / "out")) == 10
    folders = [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    assert len(folders) == 6
    for folder in folders:
        assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors", "README.md"}


def test_a_read_only_cache_works_when_it_is_full_and_says_so_when_not(child, tmp_path, place):
    cache = tmp_path / "cache"
    (cache / "rated-snippets").mkdir(parents=True)
    for task in ("movies", "amazon", "nyt", "tweets"):
        name = data.TASKS[task].snippets
        (cache / "rated-snippets" / name).write_text("".join(
            f"{k}\t{(-2, 2)[k % 2]}\t{('bad', 'good')[k % 2]} film number {k}\n" for k in range(90)))
    seal(cache / "rated-snippets")
    for path in (cache, cache / "rated-snippets"):
        path.chmod(0o555)
    try:
        assert child("--dataset", "movies", "--methods", "base", before=obey_permissions, cache=cache).returncode == 0
        message = one_error(child("--model", "smollm2-135m", "--methods", "base", before=obey_permissions, cache=cache))
        assert "cannot write to the cache folder" in message and "IA2_CACHE" in message
        message = one_error(child("--methods", "base", "--out", str(cache / "runs"), before=obey_permissions))
        assert "cannot write to" in message and "--out" in message
    finally:
        for path in (cache, cache / "rated-snippets"):
            path.chmod(0o755)


def test_the_bundled_model_survives_kills_and_damage(tmp_path):
    """Killed twice while it is fetched and converted, then damaged on disk: each time the same command gets it whole."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import model; print(model.fingerprint('smollm2-135m'))"
    environment = {**os.environ, "IA2_CACHE": str(tmp_path / "cache")}
    rng = random.Random(os.urandom(4))
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(tmp_path.glob("cache/.partial*")):
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 10))
        process.send_signal(signal.SIGKILL)
        process.wait()
    run = lambda: subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    first = run().stdout
    assert first.startswith("sha256:") and not list(tmp_path.glob("cache/.partial*"))
    weights = next(tmp_path.glob("cache/smollm2-135m-*/model.safetensors"))
    with open(weights, "r+b") as file:  # one byte, no other length
        file.seek(300_000_000)
        byte = file.read(1)
        file.seek(300_000_000)
        file.write(bytes([byte[0] ^ 1]))
    again = run()
    assert again.stdout == first and "is damaged; making it anew" in again.stderr


def test_a_half_line_is_mended_and_other_damage_is_named(child, tmp_path):
    assert child("--methods", "base").returncode == 0
    file = tmp_path / "out" / "results.jsonl"
    whole = file.read_text()
    file.write_text(whole + whole[:100])
    assert child("--methods", "base", "icl").returncode == 0
    assert len(rows_of(tmp_path / "out")) == 2 and file.read_text().startswith(whole)
    file.write_text(whole[:100] + "\n" + whole)
    assert "results.jsonl, line 1: this is not a result" in one_error(child("--methods", "base"))


def test_a_damaged_adapter_is_named_and_a_lost_one_is_made_again(child, tmp_path):
    assert child("--methods", "sft").returncode == 0
    folder, = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    weights = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(weights[:1000])
    assert "cannot be read" in one_error(child("--methods", "sft", "--eval", "sst2", "poems"))
    (folder / "training.json").unlink()
    assert child("--methods", "sft", "--eval", "sst2", "poems").returncode == 0
    assert (folder / "adapter_model.safetensors").read_bytes() == weights and len(rows_of(tmp_path / "out")) == 2


# ---- running a row again ------------------------------------------------------------------------------------------------


def test_a_rows_own_command_gives_its_figures(call, tmp_path):
    """Each row of a sweep, made alone by the command that it records, in another folder."""
    rows = call("--n", 2, 4, "--sets", 2, "--lr", 1e-3, 1e-2, "--eval", "sst2", "poems", "--methods", "icl", "ia2-sft", "kd")[3]
    picked = random.Random(1).sample(sorted(rows), 4)
    for place, key in enumerate(picked):
        words = rows[key]["command"]
        code = sweep.main([*shlex.split(words)[2:], "--out", str(tmp_path / f"again{place}")])
        again = {(row["run"], row["eval_dataset"]): row for row in map(json.loads, open(tmp_path / f"again{place}" / "results.jsonl"))}
        assert code == 0
        for name in ("accuracy", "ece", "asim", "dev_loss", "steps", "train_data", "test_data", "model_hash"):
            expected = rows[key][name]
            assert again[key][name] == (pytest.approx(expected, rel=1e-3, abs=1e-3) if isinstance(expected, float) else expected)
