"""pytest tests/test_sweep.py: the command line on a tiny model in a folder, and once on the bundled one."""
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TIMES, rows_of

import ia2
import sweep

ROOT = Path(__file__).parent.parent
def same(first, second, tolerance=1e-4):
    """Rows are equal but for float rounding."""
    assert set(first) == set(second)
    for key in first:
        for name, value in first[key].items():
            expected = pytest.approx(second[key][name], rel=tolerance, abs=2e-3) if isinstance(value, float) else None
            if expected is not None:
                assert value == expected, (key, name)
            elif not isinstance(value, (list, dict)):
                assert value == second[key][name], (key, name)


def test_a_command_ends_in_a_table_and_rows_with_all_fields(call):
    code, out, err, rows = call()
    assert code == 0 and len(rows) == 5
    assert [line.split()[1] for line in out.splitlines() if line.startswith("| ")][2:] == ["base", "icl", "sft", "ia2", "ia2-sft"]
    fields = ("method model dataset source eval_dataset labels n set lr rank accuracy accuracy_top1 ece asim steps "
              "train_seconds eval_seconds dev_loss seed versions command").split()
    for row in rows.values():
        assert set(fields) - set(TIMES) <= set(row)
    by_method = {row["method"]: row for row in rows.values()}
    assert by_method["icl"]["asim"] == 1 and by_method["base"]["steps"] == 0 and by_method["sft"]["steps"] == 4
    assert set(by_method["ia2-sft"]["overlap"]) == {"sft", "ia2"} and len(by_method["ia2-sft"]["overlap"]["ia2"]["q"]) == 3
    assert by_method["sft"]["source"] == "folder:sst2"


def test_the_same_command_again_trains_nothing_and_prints_the_same(call, monkeypatch):
    _, first, _, rows = call()
    monkeypatch.setattr(ia2, "train", None)
    monkeypatch.setattr(ia2, "evaluate", None)
    code, again, _, after = call()
    assert (code, again, after) == (0, first, rows)


def test_another_folder_gets_the_same_figures_to_the_last_digit(call):
    assert call()[3] == call(out="other")[3]


def test_saved_adapters_are_whole_and_named_by_the_rows(call, tmp_path):
    rows = call()[3]
    for row in rows.values():
        saved = tmp_path / "out" / row["run"]
        assert saved.exists() == bool(ia2.METHODS[row["method"]])
        if saved.exists():
            assert {"adapter_config.json", "adapter_model.safetensors", "training.json"} <= {p.name for p in saved.iterdir()}
    assert not list((tmp_path / "out").glob(".partial*"))


def test_a_method_alone_is_the_same_as_among_others(call):
    everything = call()[3]
    alone = call("--methods", "ia2-sft", out="alone")[3]
    (key, row), = alone.items()
    assert row["dev_loss"] == everything[key]["dev_loss"] and row["accuracy"] == everything[key]["accuracy"]


def test_new_evaluations_reuse_the_adapters(call, monkeypatch):
    before = call()[3]
    monkeypatch.setattr(ia2, "train", None)
    after = call("--eval", "sst2", "poems", "tweets")[3]
    assert len(after) == 15 and all(after[key] == before[key] for key in before)
    _, out, _, _ = call("--eval", "sst2", "poems", "tweets")
    assert "poems* acc %" in out and "sst2 acc %" in out and "out of domain" in out


SWEEP = ("--n", 2, 4, "--sets", 2, "--lr", 1e-3, 1e-2, "--methods", "base", "icl", "sft", "ia2", "ia2-sft", "kd")


def test_a_sweep_has_every_run_and_shards_add_up_to_it(call):
    whole = call(*SWEEP)[3]
    assert len(whole) == 2 * 2 * (2 + 2 * 4)
    call(*SWEEP, "--shard", "0/2", out="parts")
    same(call(*SWEEP, "--shard", "1/2", out="parts")[3], whole)


def test_runs_one_by_one_come_out_as_together(call):
    same(call(*SWEEP)[3], call(*SWEEP, "--together", 1, out="alone")[3])


def test_fifteen_runs_together_score_as_each_alone(call):
    """5 sets x 3 learning rates: dev losses within 1e-4, the same stopping step, the same test accuracy."""
    options = ("--sets", 5, "--lr", 1e-3, 3e-3, 1e-2, "--methods", "sft", "ia2", "ia2-sft")
    together, alone = call(*options)[3], call(*options, "--together", 1, out="alone")[3]
    assert len(together) == 15 * 3 and set(together) == set(alone)
    for key, row in together.items():
        assert row["dev_loss"] == pytest.approx(alone[key]["dev_loss"], rel=1e-4)
        assert (row["steps"], row["accuracy"]) == (alone[key]["steps"], alone[key]["accuracy"])


def test_all_methods_run(call):
    _, out, _, rows = call("--methods", *ia2.METHODS)
    assert len(rows) == 9 and all(f"| {method} " in out for method in ia2.METHODS)
    joint = next(row for row in rows.values() if row["method"] == "ia2+sft")
    assert joint["dev_loss"] > 0


@pytest.mark.parametrize("options", [("--n", 8), ("--n", 2, "--set", 3), ("--labels", "words"), ("--labels", "remap"),
                                     ("--balanced",), ("--balanced", "--leave-out", "each"),
                                     ("--rank", 2, "--alpha", 4), ("--targets", "v", "up"), ("--sft-on", "icl"),
                                     ("--beta", 2, "--methods", "ia2+sft"), ("--bins", 5), ("--seed", 7), ("--lr", 1e-3)])
def test_options_work_and_name_other_runs(options, call):
    rows = call(*options)[3]
    assert rows and not set(rows) & set(call("--methods", "sft", out="plain")[3]) or options[0] in ("--bins", "--beta")


@pytest.mark.parametrize("name", ["agnews", "strategytf", "sciq-mc", "qasc", "arc", "sciq", "gsm8k", "gsm8ks", "hmath-algebra",
                                  "finsen", "poems", "bbcnews", "movies"])
def test_every_task_runs_to_a_table(name, call):
    pair = {"agnews": "bbcnews", "sciq-mc": "qasc", "qasc": "sciq-mc", "gsm8k": "gsm8ks", "bbcnews": "agnews",
            "finsen": "poems"}.get(name)
    more = ("--eval", name, pair) if pair else ()
    code, out, err, rows = call("--dataset", name, "--max-tokens", 6, *more, quick=("--max-epochs", "2", "--test", "4"))
    assert code == 0 and len(rows) == (10 if pair else 5), err
    assert f"### {name}, n = 4" in out and (not pair or f"{pair}* acc %" in out)


def test_own_data_runs_and_says_what_it_is(call, tmp_path):
    rows = [{"query": f"{word} is", "response": kind} for word, kind in
            [("grass", "green"), ("snow", "white"), ("moss", "green"), ("milk", "white"), ("leaf", "green"), ("salt", "white")]]
    (tmp_path / "mine").mkdir()
    for part in ("train", "test"):
        (tmp_path / "mine" / f"{part}.jsonl").write_text("".join(
            json.dumps({**row, "query": f"{part} {row['query']}"}) + "\n" for row in rows))
    code, out, err, found = call("--dataset", tmp_path / "mine")
    assert code == 0 and len(found) == 5 and "mine is a label task: green, white" in err
    assert "### mine, n = 4" in out


def test_a_report_prints_the_same_table(call, tmp_path, capsys):
    _, out, _, _ = call(*SWEEP)
    assert sweep.main(["--report", str(tmp_path / "out" / "results.jsonl")]) == 0
    found = capsys.readouterr()
    assert found.out.startswith(out) and (tmp_path / "out" / "report.md").read_text() == found.out
    assert "report.csv" in found.err
    out = found.out
    assert "### Overlap of the updates' subspaces" in out and "rank correlation" in out and "chance, r / d_out" in out
    with open(tmp_path / "out" / "report.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 2 * (2 + 2 * 4) and "accuracy" in lines[0] and "\n" in lines[0]["prompt"]


def test_a_sweep_killed_three_times_ends_as_if_never_killed(call, place, tmp_path):
    options = [*map(str, SWEEP), "--together", "4"]
    expected = call(*options, out="whole")[3]
    command = [sys.executable, ROOT / "ia2.py", "--dataset", "sst2", "--data-dir", place / "bench", "--model", place / "tiny",
               "--out", tmp_path / "killed", "--max-epochs", "4", "--test", "8", *options]
    rng, file = random.Random(os.urandom(4)), tmp_path / "killed" / "results.jsonl"
    for _ in range(3):
        before = file.stat().st_size if file.exists() else 0
        process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (file.stat().st_size if file.exists() else 0) == before:
            time.sleep(0.05)   # until it has done something, so that each start gets further
        time.sleep(rng.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    call(*options, out="killed")
    same(rows_of(tmp_path / "killed"), expected, 1e-6)


def test_the_main_job_on_the_bundled_model(tmp_path, capsys):
    """The README's command, kept short; ia2 must move the activations toward ICL: asim at least 0.05 above base."""
    assert sweep.main(["--dataset", "movies", "--n", "4", "--test", "16", "--max-epochs", "12", "--lr", "1e-3",
                       "--methods", "base", "icl", "ia2", "--out", str(tmp_path)]) == 0
    rows = {row["method"]: row for row in rows_of(tmp_path).values()}
    assert rows["ia2"]["asim"] > rows["base"]["asim"] + 0.05
    assert rows["base"]["labels"] == "words" and rows["base"]["balanced"]
    assert "pypi:vaderSentiment" in capsys.readouterr().out


def test_a_bad_teacher_is_reported(call):
    """A random model answers one label for every query."""
    _, _, err, _ = call("--labels", "words", "--methods", "icl")
    assert "warning" in err and "ICL is" in err
