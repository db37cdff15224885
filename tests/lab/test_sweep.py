"""pytest tests/lab/test_sweep.py: many runs on a tiny model: what they share, how they resume, teachers."""
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import tiny
from filelock import FileLock, Timeout

import data
import ia2
import lora
from lab import report, sweep
from sources import offline

ROOT = Path(__file__).parents[2]
SWEEP = ("--n", 2, 4, "--sets", 2, "--lr", 1e-3, 1e-2, "--eval", "sst2", "poems")
ALL = ("--methods", *sweep.METHODS)


def figures(rows):
    """{what a row is about: its figures without times}; no row twice."""
    drop = ("seconds", "stages", "command", "overlap")
    named = {(row["run"], row["eval_dataset"]): {key: value for key, value in row.items() if key not in drop}
             for row in rows}
    assert len(named) == len(rows)
    return named


@pytest.fixture
def run(call):
    def run(*options, **more):
        code, out, err, rows = call(*options, main=sweep.main, **more)
        assert code == 0, err
        return out, err, rows
    return run


def test_a_sweep_has_every_run_and_trains_what_two_methods_share_once(run, monkeypatch):
    trained, real = [], ia2.train

    def train(*arguments, **options):
        trained.append(arguments[6])
        return real(*arguments, **options)
    monkeypatch.setattr(ia2, "train", train)
    out, _, rows = run(*SWEEP, *ALL)
    assert len(figures(rows)) == 2 * 2 * 2 * (2 + 2 * 7)
    # Of nine stages in seven methods, ia2 begins two and sft two.
    assert len(trained) == 2 * 2 * 2 * 7 and trained.count("ia2") == 2 * 2 * 2 * 2
    assert all(f"| {method} " in out for method in sweep.METHODS)
    joint = next(row for row in rows if row["method"] == "ia2-sft" and row["set"] == 1)
    assert {"sft", "ia2", "ia2, other set", "chance"} <= set(joint["overlap"])


def test_a_row_of_a_sweep_is_that_of_the_main_job(run, call):
    swept = figures(run(*SWEEP)[2])
    alone = figures(call("--n", 4, "--set", 1, "--lr", 1e-2, "--eval", "sst2", "poems", out="alone")[3])
    assert len(alone) == 10 and set(alone) < set(swept)
    for key, row in alone.items():
        assert row == swept[key]


def test_the_same_command_again_runs_nothing_and_prints_the_same(run, monkeypatch):
    first, _, rows = run(*SWEEP)
    monkeypatch.setattr(ia2, "train", None)
    monkeypatch.setattr(ia2, "evaluate", None)
    assert run(*SWEEP)[::2] == (first, rows)


def test_job_arrays_add_up_to_the_sweep(run):
    whole = figures(run(*SWEEP)[2])
    options = [word for word in SWEEP if word not in ("--sets",)]
    options.remove(2) if options[options.index(4) + 1] == 2 else None
    for i in (1, 0):
        rows = run("--set", i, *options, out="parts")[2]
    assert figures(rows) == whole


def test_a_sweep_killed_three_times_ends_as_if_never_killed(run, place, tmp_path):
    expected = figures(run(*SWEEP, out="whole")[2])
    command = [sys.executable, "-m", "lab.sweep", "--data-dir", place / "bench", "--model", place / "tiny",
               "--out", tmp_path / "killed",
               "--epochs", 2, "--test", 6, *SWEEP]
    rng, file = random.Random(os.urandom(4)), tmp_path / "killed" / "results.jsonl"
    for _ in range(3):
        before = file.stat().st_size if file.exists() else 0
        process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   cwd=ROOT)
        while process.poll() is None and (file.stat().st_size if file.exists() else 0) == before:
            time.sleep(0.02)   # until it has done something, so that each start gets further
        time.sleep(rng.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    rows = figures(run(*SWEEP, out="killed")[2])
    assert set(rows) == set(expected)
    for key, row in rows.items():
        for name, value in row.items():
            assert value == (pytest.approx(expected[key][name], abs=1e-4) if isinstance(value, float)
                             else expected[key][name]) \
                or isinstance(value, list), (key, name)


def test_adapters_are_written_and_read_under_the_lock_of_their_folder(run, tmp_path, monkeypatch):
    """So no process reads an adapter that another is replacing."""
    seen = set()

    def watch(module, name):
        original = getattr(module, name)

        def held(*args, **kwargs):
            with pytest.raises(Timeout), FileLock(tmp_path / "out" / ".results.jsonl.lock", timeout=0):
                pass
            seen.add(name)
            return original(*args, **kwargs)
        monkeypatch.setattr(module, name, held)

    watch(lora, "save")
    watch(sweep, "load_file")
    run("--sets", "1")
    assert seen == {"save", "load_file"}


def test_half_a_row_is_removed_and_a_whole_one_without_its_newline_is_kept(run, tmp_path):
    run("--methods", "base", "icl")
    file = tmp_path / "out" / "results.jsonl"
    whole = file.read_text()
    file.write_text(whole + whole[:100])
    assert len(run("--methods", "sft")[2]) == 3 and file.read_text().startswith(whole)
    file.write_text(whole.rstrip("\n"))
    assert len(offline.read_rows(file)) == 2
    assert len(run("--methods", "sft")[2]) == 3 and file.read_text().startswith(whole)
    file.write_text(whole + whole)
    assert len(offline.read_rows(file)) == 2, "a row that is there twice counts once"


# ---- losses ------------------------------------------------------------------------------------------------


def test_the_losses_of_the_lab_equal_their_formulas():
    model = tiny()
    lora.add(model)
    with torch.no_grad():
        for layer in lora.layers(model).values():
            layer.B.normal_(std=0.05)
    targets = [ia2.Target([9, 8, 7, 5, 6], [5, 6], [7], [11, 12], torch.zeros(3, 2, 32)),
               ia2.Target([4, 3, 5], [3, 5], [8, 9], [13], torch.ones(3, 1, 32))]
    with lora.disable(model), torch.no_grad():
        teachers = [model(torch.tensor([t.prompt + t.icl[:-1]])).logits[0, -len(t.icl):].softmax(-1)
                    for t in targets]
    students = [model(torch.tensor([t.query + t.icl[:-1]])).logits[0, -len(t.icl):].log_softmax(-1)
                for t in targets]
    kl = sum((p * (p.log() - q)).sum(-1).mean() for p, q in zip(teachers, students)) / 2
    cross = sum(-q[range(len(t.icl)), t.icl].mean() for q, t in zip(students, targets)) / 2
    torch.testing.assert_close(sweep.kd_loss(model, targets)(model, targets), kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sweep.sft_icl_loss(model, targets), cross, rtol=1e-4, atol=1e-5)
    joint = sweep.joint_loss(0.7, sweep.sft_icl_loss)(model, targets)
    torch.testing.assert_close(joint, ia2.ia2_loss(model, targets) + 0.7 * cross, rtol=1e-4, atol=1e-4)


# ---- the teacher's demos -----------------------------------------------------------------------------------


def test_flipped_demos_have_the_next_label_and_foreign_ones_other_texts():
    pool = [data.Example(f"q{k}", f" {'abc'[k % 3]}", k % 3) for k in range(12)]
    few = data.few_shot_set(pool, 4)
    texts = [" a", " b", " c"]
    flipped = sweep.change_demos(few, "flipped", texts, None)
    assert [demo.label for demo in flipped.demos] == [(e.label + 1) % 3 for e in few.train]
    assert flipped.train == few.train
    assert all(demo.response == texts[demo.label] and demo.query == e.query
               for demo, e in zip(flipped.demos, few.train))
    free = data.few_shot_set([data.Example(f"q{k}", f" r{k}") for k in range(12)], 4)
    moved = sweep.change_demos(free, "flipped", [], None)
    assert sorted(demo.response for demo in moved.demos) == sorted(e.response for e in free.train)
    assert all(demo.response != e.response for demo, e in zip(moved.demos, free.train))
    assert data.leave_one_out(flipped, 1) == [e for e in data.leave_one_out(flipped, 1)
                                              if e != flipped.demos[1]]
    assert sweep.change_demos(few, "none", texts, None).demos == []
    assert sweep.change_demos(few, "own", texts, None) == few


def test_without_demos_the_ia2_loss_is_zero_and_nothing_changes(run, tmp_path):
    _, err, rows = run("--demos", "none", "--methods", "base", "icl", "ia2")
    base, icl, trained = rows
    assert "ia2: first loss 0.0000" in err
    assert base["asim"] == pytest.approx(1, abs=1e-6) and icl["agreement"] == 1
    for field in ("accuracy", "ece", "label_mass"):
        assert trained[field] == pytest.approx(base[field], abs=1e-6) == pytest.approx(icl[field], abs=1e-6)
    assert all(row["demos"] == "none" for row in rows)


@pytest.mark.parametrize("kind", ["flipped", "foreign"])
def test_other_demos_are_other_runs_with_other_targets(kind, run):
    own = run("--methods", "ia2")[2]  # base and icl are always there
    other = run("--demos", kind, "--methods", "ia2", out="other")[2]
    assert [row["method"] for row in own] == ["base", "icl", "ia2"]
    assert {row["run"] for row in own}.isdisjoint({row["run"] for row in other})
    assert own[0]["train_data"] == other[0]["train_data"] and own[-1]["dev_loss"] != other[-1]["dev_loss"]
    text = report.tables(own + other)
    assert text.count("### ") == 2 and f"the teacher's demos {kind}" in text


@pytest.mark.parametrize("options", [("--sft-on", "icl"), ("--beta", 2, "--methods", "ia2+sft")])
def test_options_of_the_lab_name_other_runs(options, run):
    usual = {row["run"] for row in run(*options[2:])[2] if row["lr"]}
    other = {row["run"] for row in run(*options, out="other")[2] if row["lr"]
             and (row["method"] != "ia2" or "--beta" in options)}
    assert other and not usual & other
