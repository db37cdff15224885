"""pytest tests/lab/test_bench.py: both ways of every step give the same, and are timed."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny

import data
import ia2
import lora
from engine import cpu, models
from lab import authors, bench, reproduce, sweep
from lab.variants import METHODS
from support import cli, records
from support.cli import UserError

ROOT = Path(__file__).parents[2]
STEPS = (
    "targets, 1 token",
    "targets, 48 tokens",
    "ia2 stage",
    "sft stage",
    "evaluation",
    "icl evaluation",
)


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A tiny model that can be found by its folder."""
    tiny(vocabulary=len(tokenizer), max_position_embeddings=2048).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def work(folder):
    choice = models.find(str(folder), "cpu")
    model = models.load_model(choice)
    plain = bench.plain_model(model)
    cpu.speed_up(model)
    lora.add(model)
    return bench.make_work(model, choice, epochs=2, queries=3), plain


# ---- the plain way -------------------------------------------------------------------------------


def test_both_ways_leave_the_same_targets(work):
    work, plain = work
    *demos, last = work.problems
    ours = ia2.collect_target(work.model, work.tokenizer, last, demos, 5)
    theirs = bench.plain_target(plain, work.tokenizer, last, demos, 5)
    assert ours.Y_icl == theirs.Y_icl
    assert ours.student_prompt == theirs.student_prompt
    assert torch.allclose(ours.A_icl, theirs.A_icl, atol=1e-4)
    both = zip(
        ia2.few_shot_targets(work.model, work.tokenizer, work.few_shot),
        bench.plain_targets(plain, work),
    )
    for our_part, their_part in both:
        assert [target.Y_icl for target in our_part] == [target.Y_icl for target in their_part]


def test_both_ways_train_the_same_adapter(work):
    work, plain = work
    targets, dev = bench.plain_targets(plain, work)
    for name, loss in (("ia2", ia2.ia2_loss), ("sft", ia2.sft_loss)):
        lora.reset(work.model)
        ia2.train(work.model, loss, targets, dev, ia2.Recipe(epochs=2, keep="last"))
        bench.plain_train(plain, name, targets, dev, epochs=2)
        theirs = lora.state(plain)
        for key, weight in lora.state(work.model).items():
            assert torch.allclose(weight, theirs[key], atol=1e-5), (name, key)


def test_the_benchmark_times_both_ways_of_every_step(folder, capsys, monkeypatch):
    monkeypatch.setattr(bench, "LONG", 2)  # the plain way reads the whole prompt for each token
    bench.main(["--model", str(folder), "--repeats", "1", "--epochs", "1", "--queries", "2"])
    printed = capsys.readouterr()
    for step in STEPS:
        assert re.search(rf"\| {step} +\| [\d.]+ +\| [\d.]+ +\| [\d.]+ ", printed.out), step
    assert "plain way" in printed.out


# ---- the authors' code ---------------------------------------------------------------------------


def test_what_is_no_checkout_of_the_authors_code_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no checkout of the authors' code"):
        authors.load(str(tmp_path))


def stand_in_code(path):
    """The authors' modules as far as importing them goes, with the names that clash with ours."""
    scripts = path / "scripts"
    scripts.mkdir()
    (scripts / "utils.py").write_text("NAME = 'theirs'\n")
    (scripts / "data.py").write_text("import utils\nNAME = utils.NAME\n")
    (scripts / "train_unified.py").write_text("import wandb\nimport data\nNAME = data.NAME\n")
    (scripts / "evaluate_batch_optimized.py").write_text("from data import NAME\n")
    return path


def test_the_authors_modules_are_imported_and_ours_stay(tmp_path, capsys):
    code = authors.load(str(stand_in_code(tmp_path)))
    assert code.training.NAME == code.evaluation.NAME == code.data.NAME == "theirs"
    assert sys.modules["data"] is data
    assert "utils" not in sys.modules
    assert str(tmp_path / "scripts") not in sys.path
    assert "is not at commit 8fee5ab" in capsys.readouterr().err


def test_a_package_that_the_authors_code_needs_is_named(tmp_path):
    stand_in_code(tmp_path)
    (tmp_path / "scripts" / "data.py").write_text("import a_package_that_nobody_has\n")
    with pytest.raises(UserError, match="a_package_that_nobody_has.*leave --authors out"):
        authors.load(str(tmp_path))
    assert sys.modules["data"] is data


def test_lines_of_code_are_counted(tmp_path):
    stand_in_code(tmp_path)
    text = authors.sizes(tmp_path)
    assert text.endswith(" 7 there")
    core = sum(path.read_text().count("\n") for path in ROOT.glob("*.py"))
    assert f"({core:,} of them the four scripts" in text


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")
def test_examples_are_handed_over_as_the_authors_class_takes_them(work):
    """Their class gets query, response and the demos' texts, each example its own."""
    work, _ = work
    seen = []
    code = SimpleNamespace(
        data=SimpleNamespace(ICLDataset=lambda *words, **options: seen.append((words, options)))
    )
    theirs = object.__new__(authors.Theirs)
    theirs.code, theirs.tokenizer = code, work.tokenizer
    first, second = work.few_shot.train[:2]
    theirs.dataset([first, second], [[second], [first]])
    [(words, options)] = seen
    assert words[0][0] == {"idx": 0, "question": first.query, "answer": first.response}
    assert words[2] == [[second.query + second.response], [first.query + first.response]]
    assert options["num_generated_tokens"] == 1


# ---- the reproduction ----------------------------------------------------------------------------


def test_the_reproduction_prints_its_commands_with_the_sums_of_the_rows(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    reproduce.main([])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(reproduce.RUNS)
    assert all(re.search(r"    # [\d.]+ h, .*, rows [0-9a-f]{12}$", line) for line in lines)


def test_the_reproduction_runs_them(monkeypatch, capsys):
    ran = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(subprocess, "run", lambda words, check: ran.append(words))
    reproduce.main(["--run"])
    assert [words[:3] for words in ran] == [[sys.executable, "-m", "lab.sweep"]] * len(ran)
    assert len(ran) == len(reproduce.RUNS)


def rows_of(run):
    """What tells the rows of a command apart."""
    args = sweep.sweep_parser().parse_args(shlex.split(run.command)[3:])
    labels = args.labels or models.MODELS[args.model].labels
    trained = [method for method in METHODS if method in args.methods]
    found = set()
    for n, number, test in product(args.n, range(args.sets), args.eval):
        for method in ("base", "icl", *trained):
            for lr in args.lr if method in trained else [None]:
                row = (run.name, labels, args.demos, n, number, lr, method, test, args.test)
                found.add(row)
    return found


def test_the_reproduction_is_what_the_committed_rows_need():
    made = set().union(*(rows_of(run) for run in reproduce.RUNS))
    fields = ("labels", "demos", "n", "set", "lr", "method", "eval_dataset", "test")
    committed = []
    for file in ROOT.glob("results/*-*/results.jsonl"):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            committed.append((file.parent.name, *(row.get(field) for field in fields)))
    assert made == set(committed)
    assert len(committed) == len(made)
    assert len(records.read_rows(ROOT / "results/smollm2-135m-movies/results.jsonl")) == 405


def test_a_failed_command_ends_the_reproduction(monkeypatch, capsys):
    def fail(words, check):
        raise subprocess.CalledProcessError(2, words)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(subprocess, "run", fail)
    code = cli.run_main(lambda: reproduce.main(["--run"]), subprocess.CalledProcessError)
    assert code == 2
    assert "returned non-zero exit status" in capsys.readouterr().err
