"""pytest tests/lab/test_faults.py: wrong input, full disks, locked and shared folders, for real."""

import functools
import json

import children
import pytest
import torch
from conftest import tiny
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from lab import sweep
from support import records

# The options of a command, and what its one line on stderr says.
CASES = [
    ("--n 1", "n must be at least 2, not 1"),
    ("--n 0", "argument --n: must be a whole number of 1 or more"),
    ("--n four", "argument --n: must be a whole number"),
    ("--n 2.5", "argument --n: must be a whole number"),
    ("--n 20000", "n = 20000 needs 20000 training and 10000 dev examples, more than the pool of"),
    ("--n 2 4", "unrecognized arguments: 4"),
    ("--lr 0", "argument --lr: must be a number above 0"),
    ("--lr -1e-3", "argument --lr"),
    ("--lr nan", "must be a number above 0"),
    ("--lr 1e31", "must be a number above 0 and at most 1e+30"),
    ("--lr fast", "must be a number above 0"),
    ("--lr 1..2", "must be a number"),
    ("--set -1", "argument --set"),
    ("--test 0", "argument --test: must be a whole number of 1 or more"),
    ("--rank 0", "argument --rank"),
    ("--epochs 0", "argument --epochs"),
    ("--keep first", "argument --keep"),
    ("--max-tokens 0", "argument --max-tokens"),
    ("--seed -1", "argument --seed"),
    ("--nonsense", "unrecognized arguments: --nonsense"),
    ("--report x", "unrecognized arguments: --report x"),
    ("--lr 1e30 --methods ia2", "training has diverged: use a smaller --lr"),
    ("--dataset movis", "unknown dataset 'movis' (did you mean movies?)"),
    ("--eval sst", "unknown dataset 'sst' (did you mean sst2?)"),
    ("--dataset /no/such/folder", "unknown dataset '/no/such/folder'"),
    ("--methods iaa2", "invalid choice: 'iaa2' (choose from 'base', 'icl', 'sft'"),
    ("--methods kd", "invalid choice: 'kd'"),
    ("--model smollm2-153m", "unknown model 'smollm2-153m' (did you mean smollm2-135m?)"),
    ("--model /no/such/model", "/no/such/model"),
    ("--labels word", "invalid choice: 'word' (choose from 'digits', 'words', 'remap')"),
    ("--device gpu", "invalid choice: 'gpu'"),
    ("--eval agnews", "cannot be tested on agnews"),
    ("--dataset gsm8k --eval sciq", "cannot be tested on sciq"),
    ("--data-dir /no/such/folder", "/no/such/folder/sst2 has no train.jsonl"),
    ("--data-dir {traps}/latin", "train.jsonl, line 2: this is not UTF-8"),
    ("--data-dir {traps}/torn", "train.jsonl, line 2: this is not a JSON object"),
    ("--data-dir {traps}/fieldless", "train.jsonl, line 1: "),
    ("--dataset {traps}/empty", "has no train.jsonl"),
    ("--dataset {traps}/alike --n 2", "start with the same token"),
    ("--dataset {traps}/long --n 4", "more than the model's context of 512"),
    ("--out /proc/nowhere", "cannot write to /proc/nowhere"),
    ("--out {traps}/a_file", "cannot write to"),
    ("--out {traps}/torn_results", "results.jsonl, line 1: this is not a result"),
    ("--model {traps}/gpt2", "use a Llama, Qwen or Gemma model"),
    ("--model {traps}/empty", "cannot load the model"),
    ("--model {traps}/pickled", "cannot load the model"),
    ("--model {traps}/endless --dataset gsm8k --max-tokens 4", "has no end-of-sequence token"),
]
if not torch.cuda.is_available():
    CASES.append(("--device cuda", "no CUDA device was found"))


def write(path, *rows):
    """train.jsonl and test.jsonl of a folder, the last third for the test; bytes stay as given."""
    path.mkdir(parents=True)
    lines = []
    for row in rows:
        lines.append(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n")
    third = -len(lines) // 3
    (path / "train.jsonl").write_bytes(b"".join(lines[:third]))
    (path / "test.jsonl").write_bytes(b"".join(lines[third:]))


@pytest.fixture(scope="module")
def traps(place, tokenizer):
    """What the table of wrong inputs refers to."""
    path = place / "traps"
    write_data_traps(path)
    (path / "empty").mkdir()
    (path / "a_file").write_text("x")
    (path / "torn_results").mkdir()
    (path / "torn_results" / "results.jsonl").write_text("nonsense\n")
    write_model_traps(path, tokenizer)
    return path


def write_data_traps(path):
    good = {"sentence": "a fine film", "label": 1}
    latin = '{"sentence": "café", "label": 0}\n'.encode("latin-1")
    write(path / "latin" / "sst2", good, latin, good)
    write(path / "torn" / "sst2", good, b'{"sentence": "a fine\n', good)
    write(path / "fieldless" / "sst2", {"text": "a fine film", "label": 1}, good)
    cities = [{"query": f"{k}", "response": ("New York", "New Delhi")[k % 2]} for k in range(9)]
    write(path / "alike", *cities)
    long = "very long text " * 150
    texts = [{"query": f"{k} {long}", "response": ("yes", "no")[k % 2]} for k in range(12)]
    write(path / "long", *texts)


def write_model_traps(path, tokenizer):
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=len(tokenizer))
    GPT2LMHeadModel(config).save_pretrained(path / "gpt2")
    for name in ("pickled", "endless"):
        tiny(vocabulary=len(tokenizer)).save_pretrained(path / name)
    for name in ("gpt2", "pickled", "endless"):
        tokenizer.save_pretrained(path / name)
    (path / "pickled" / "model.safetensors").rename(path / "pickled" / "pytorch_model.bin")
    endless = AutoTokenizer.from_pretrained(path / "endless")
    endless.eos_token = None
    endless.save_pretrained(path / "endless")


@pytest.mark.parametrize("options, message", CASES, ids=[options for options, _ in CASES])
def test_wrong_input_is_one_line_and_exit_code_2(options, message, call, traps):
    words = options.format(traps=traps).split()
    result = call(*words, quick=("--test", "2", "--epochs", "2"))
    lines = result.err.splitlines()
    problems = [line for line in lines if line.startswith(("error", "usage", "Traceback"))]
    assert result.code == 2 and result.out == "" and problems == lines[-1:], result.err
    assert message in problems[0] and problems[0].startswith("error: ")


# ---- child processes that meet a fault -----------------------------------------------------------


@pytest.fixture
def words(place, tmp_path):
    """The options of a small sweep."""
    return (
        *("--dataset", "sst2", "--data-dir", place / "bench", "--model", place / "tiny"),
        *("--epochs", 2, "--test", 4, "--out", tmp_path / "out"),
    )


def one_error(ended):
    """The one line that an error is."""
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert ended.code == 2 and len(lines) == 1, ended.err
    assert "Traceback" not in ended.err, ended.err
    return lines[0]


@pytest.mark.parametrize("limit, rows", [(1_000, 0), (15_000, 6), (21_000, 9)])
def test_a_full_disk_is_reported_and_loses_nothing(limit, rows, words, call, tmp_path):
    """1 kB is too little for the first rows, 15 kB for an adapter, 21 kB for the later rows."""
    tests = ("--eval", "sst2", "finsen", "poems")
    full = functools.partial(children.limit_files, limit)
    message = one_error(children.start(*words, *tests, before=full).end())
    assert "File too large" in message or "cannot write" in message, message
    file = tmp_path / "out" / "results.jsonl"
    kept = file.read_text() if file.exists() else ""
    assert not kept or kept.endswith("\n")
    assert len(records.read_rows(file)) == rows
    assert not list((tmp_path / "out").glob("**/.partial*"))
    assert not list((tmp_path / "out").glob(".results*partial"))
    again = call(*tests, main=sweep.main, quick=("--epochs", 2, "--test", 4))
    assert again.code == 0, again.err
    assert file.read_text().startswith(kept) and len(again.rows) == 15


def test_a_disk_that_fills_while_the_model_is_prepared(words, tmp_path):
    """1 MB is too little for the download: a sentence, and nothing that would be read as whole."""
    cache = tmp_path / "cache"
    full = functools.partial(children.limit_files, 10**6)
    options = ("--model", "smollm2-135m")
    message = one_error(children.start(*words, *options, before=full, cache=cache).end())
    assert "could not download" in message or "cannot write to the cache folder" in message
    assert not list(cache.glob("smollm2*"))


def test_two_processes_on_one_folder_share_it(words, tmp_path):
    """Both end well, with every row once and every adapter whole."""
    processes = [children.start(*words, "--sets", 2) for _ in range(2)]
    both = [process.end() for process in processes]
    assert [ended.code for ended in both] == [0, 0], both
    file = tmp_path / "out" / "results.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 10 == len({(row["run"], row["eval_dataset"]) for row in rows})
    folders = {tmp_path / "out" / row["run"] for row in rows if row.get("lr")}
    assert len(folders) == 6
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "training.json",
        }


def test_folders_that_cannot_be_written_are_named(words, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    before = children.obey_permissions
    try:
        message = one_error(children.start(*words, "--out", locked, before=before).end())
        assert "cannot write to" in message and "--out" in message
        options = ("--model", "smollm2-135m")
        message = one_error(children.start(*words, *options, before=before, cache=locked).end())
        assert "cannot write to the cache folder" in message and "IA2_CACHE" in message
    finally:
        locked.chmod(0o755)


def test_a_damaged_results_file_is_named(call, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.jsonl").write_text('{"run": "x"}\n[1]\n')
    result = call(main=sweep.main)
    assert result.code == 2 and "results.jsonl, line 1: this is not a result" in result.err
