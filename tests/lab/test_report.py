"""pytest tests/lab/test_report.py: tables that average over few-shot sets alone; saved adapters; speed."""
import json
import re
import shlex
from itertools import product
from pathlib import Path

import pytest
from conftest import tiny
from scipy import stats
from test_lora import peft_folder

import ia2
import lora
from lab import adapters, bench, plots, report, reproduce, sweep
from sources import models, offline

BASE = dict(model="m", model_hash="sha256:abcdef", dtype="float32", dataset="d", source="s",
            pool_data="p" * 16, prompt="{text}", labels="words", balanced=False, max_tokens=1, seed=0,
            demos="own", n=4, versions={"torch": "2"}, eval_dataset="d", eval_source="s", test=10,
            test_data="t" * 16, ece=0.1, ece_floor=0.05, ece_floor_sd=0.01, asim=0.5,
            accuracy_among_labels=0.5, label_mass=0.9)


def row(method="sft", number=0, accuracy=0.5, lr=1e-3, **changes):
    trained = {"lr": lr, "rank": 8, "epochs": 50, "dev_gold_loss": 1.0}
    if method in ("base", "icl"):
        trained = {"lr": None, "rank": None, "epochs": None}
    found = {**BASE, **trained, "method": method, "set": number, "accuracy": accuracy, **changes}
    return {**found, "run": json.dumps({key: value for key, value in found.items() if "eval" not in key},
                                       sort_keys=True)}


def test_means_and_intervals_are_over_few_shot_sets():
    rows = [row("sft", i, accuracy) for i, accuracy in enumerate([0.4, 0.6, 0.8])]
    rows += [row("base", i, 0.5) for i in range(3)]
    interval = stats.t.interval(0.95, 2, loc=60, scale=stats.sem([40, 60, 80]))
    text = report.tables(rows)
    assert f"| 60.0 [{interval[0]:.1f}, {interval[1]:.1f}]" in text and "| base " in text
    assert re.search(r"\| sft +\| 0.001 +\| 3 ", text)


@pytest.mark.parametrize("change", [
    {"rank": 3}, {"seed": 1}, {"test": 20, "test_data": "u" * 16}, {"pool_data": "q" * 16}, {"epochs": 10},
    {"labels": "digits"},
    {"balanced": True}, {"source": "folder:d"}, {"model_hash": "sha256:fedcba"}, {"dtype": "bfloat16"},
    {"sft_on": "icl"}, {"beta": 2.0}, {"demos": "flipped"},
    {"n": 8}, {"versions": {"torch": "3"}}, {"test_data": "v" * 16}, {"prompt": "Text:{text}"},
    {"dataset": "e"}, {"max_tokens": 5}, {"lr": 3e-4}])
def test_rows_that_differ_in_anything_but_the_set_are_never_averaged(change):
    text = report.tables([row("sft", 0, 0.4), row("sft", 1, 0.9, **change)])
    assert "65.0" not in text and "2 few-shot sets" not in text
    assert not re.search(r"\| sft [^\n]*\| 2 +\|", text)
    assert "40.0" in text or "lr" in change


def test_equal_rates_stand_beside_the_picked_one_and_the_yardstick_is_the_gold_loss():
    """By the stage's own dev loss and the test 1e-3 would win; the dev examples' true answers say 1e-4."""
    rows = [row("ia2", i, 0.9, 1e-3, dev_gold_loss=0.9, dev_loss=1.0) for i in range(2)]
    rows += [row("ia2", i, 0.3, 1e-4, dev_gold_loss=0.2, dev_loss=9.0) for i in range(2)]
    rows += [row("sft", i, 0.8, 1e-2, dev_gold_loss=0.1) for i in range(1)]  # lacks a set: is not picked
    rows += [row("sft", i, 0.5, 1e-4, dev_gold_loss=0.5) for i in range(2)]
    rows += [row("base", i, 0.4) for i in range(2)]
    picked = report.pick_rates(rows)
    assert {(r["method"], r["lr"]) for r in picked} == {("ia2", 1e-4), ("sft", 1e-4), ("base", None)}
    text = report.tables(rows)
    assert text.count("Every method at") == 3 and "lowest cross-entropy on the true answers" in text
    for part in text.split("Every method at")[1:]:
        assert "| base " in part


def test_the_kinds_of_demos_stand_side_by_side_and_are_never_averaged():
    rows = [row("ia2", i, accuracy, demos=kind, agreement=0.25) for i in range(2)
            for kind, accuracy in (("own", 0.8), ("flipped", 0.3))]
    rows += [row("ia2", i, 0.99, 3e-2, demos="own", dev_gold_loss=0) for i in range(2)]  # flipped lacks it
    text = report.controls(rows)
    assert "99.0" not in text and text.count("###") == 1
    assert "as ICL %" in text and "25.0 [25.0, 25.0]" in text
    assert re.search(r"\| own +\| ia2 .*\| 80.0 \[80.0, 80.0\]", text)
    assert re.search(r"\| flipped +\| ia2 .*\| 30.0 \[30.0, 30.0\]", text)
    assert not report.controls([found for found in rows if found["demos"] == "own"])


def test_differences_pair_the_sets_and_average_tests_of_a_set_first():
    rows = []
    for i, (first, second) in enumerate([(0.9, 0.6), (0.8, 0.7), (0.7, 0.65)]):
        for task, more in (("d", 0.0), ("e", 0.1)):
            rows += [row("ia2-sft", i, first + more, eval_dataset=task),
                     row("sft", i, second, eval_dataset=task)]
    assert report.paired(rows, "accuracy", "ia2-sft", "sft") == pytest.approx([0.35, 0.15, 0.10])
    lines = report.claims(rows)
    gap = stats.t.interval(0.95, 2, loc=15, scale=stats.sem([30, 10, 5]))
    claim = next(line for line in lines if "more accurate than SFT, in domain" in line[0])
    assert claim[1] == f"+15.0 [{gap[0]:+.1f}, {gap[1]:+.1f}], 3 sets" and claim[2] == "undecided"
    assert all("p =" not in cell for line in lines for cell in line)


def test_asim_against_ece_is_looked_at_within_method_and_n():
    """Between methods they fall together; within each they rise together, and that is what counts."""
    rows = [row(method, i, asim=level + i / 100, ece=0.5 - level + i / 100)
            for method, level in (("sft", 0.1), ("ia2", 0.4)) for i in range(5)]
    assert next(line for line in report.claims(rows) if "nearer" in line[0])[1].endswith("mean +1.00 of 2")


def test_the_report_prints_a_results_file_and_draws_it(call, tmp_path, monkeypatch, capsys):
    _, out, _, rows = call("--sets", 2, "--n", 2, 4, main=sweep.main)
    file = tmp_path / "out" / "results.jsonl"
    monkeypatch.setattr("sys.argv", ["report", str(file), "--plots", str(tmp_path / "pictures")])
    assert offline.run_main(report.main) == 0
    found = capsys.readouterr()
    assert found.out.startswith(out.rstrip("\n")) and "### Claims of the paper" in found.out
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 4 and "pictures: 4" in found.err
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "none.jsonl")])
    assert offline.run_main(report.main) == 2 and "there is no results file" in capsys.readouterr().err


def test_pictures_show_base_and_hide_nothing():
    rows = [row(method, i, 0.2 + 0.1 * i, asim_layers=[0.5, 0.6])
            for method in ("base", "icl", "sft", "ia2", "ia2-sft") for i in range(3)]
    axis = plots.set_by_set(rows, "title").axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["base", "icl", "sft", "ia2", "ia2-sft"]
    assert len(axis.lines) == 4 and axis.get_ylim()[0] < 0 and axis.get_ylim()[1] > 100
    figure = plots.reliability({"base": [(3, 0.2, 0.1), (7, 0.9, 0.8)]}, {"base": 0.1}, 0.05)
    legend = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert legend == {"10% of the queries", "50% of the queries"}
    for figure in (plots.loss_by_layer([1, 2, 6], [1, 1, 2]),
                   plots.curves({"ia2": ([2, 4], [3, 1])}, "loss", "t"),
                   plots.clouds({"base": {"base": [[0, 1], [2, 3]]}}),
                   plots.asim_by_layer({"base": [0.1, 0.9]})):
        assert figure.axes[0].get_title() and figure.axes[0].has_data()


# ---- saved adapters ----------------------------------------------------------------------------------------


QUICK = ("--test", "6")


@pytest.mark.parametrize("option", adapters.TRAINING)
def test_options_of_training_are_not_taken_where_nothing_is_trained(option, call, tmp_path):
    code, _, err, _ = call(tmp_path, option, "1", main=adapters.main, quick=QUICK)
    assert code == 2 and "unrecognized arguments" in err and option in err


def test_a_saved_adapter_is_tested_with_the_settings_of_its_training(call, tmp_path):
    rows = call("--labels", "words", "--eval", "sst2", "poems")[3]
    trained = next(row for row in rows if row["method"] == "ia2-sft" and row["eval_dataset"] == "poems")
    code, out, err, _ = call(tmp_path / "out" / trained["run"], "--eval", "poems", main=adapters.main,
                             quick=QUICK)
    assert code == 0, err
    line = next(line for line in out.splitlines() if line.startswith("| adapter"))
    assert f"{100 * trained['accuracy']:.1f}" in line and f"{trained['ece']:.3f}" in line and "| base " in out


def test_pefts_own_adapters_are_tested_too_and_what_is_missing_is_said(call, place, tmp_path):
    peft_folder(tmp_path / "theirs", tiny(vocabulary=49152))
    code, out, err, _ = call(tmp_path / "theirs", "--eval", "sst2", main=adapters.main, quick=QUICK)
    assert code == 0 and "| adapter " in out, err
    for words, message in (((tmp_path / "theirs",), "does not say its task; give one with --eval"),
                           ((tmp_path,), "is not an adapter folder: adapter_config.json is missing"),
                           ((tmp_path / "theirs", "--eval", "sst2", "agnews"), "cannot be tested on agnews")):
        code, out, err, _ = call(*words, main=adapters.main, quick=QUICK)
        assert code == 2 and message in err and not out


def test_an_adapter_is_not_tested_on_other_weights(call, place, tmp_path, tokenizer):
    run = next(row["run"] for row in call()[3] if row["method"] == "sft")
    tiny(vocabulary=49152, rms_norm_eps=1e-3, hidden_size=64).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    code, _, err, _ = call(tmp_path / "out" / run, "--model", tmp_path / "other", main=adapters.main,
                           quick=QUICK)
    assert code == 2 and "with other weights than those of" in err
    (tmp_path / "out" / run / "training.json").unlink()
    code, _, err, _ = call(tmp_path / "out" / run, "--model", tmp_path / "other", "--eval", "sst2",
                           main=adapters.main, quick=QUICK)
    assert code == 2 and "does not fit" in err


# ---- speed and the reproduction ----------------------------------------------------------------------------


def test_the_benchmark_compares_both_ways_on_every_step(monkeypatch, capsys, tmp_path, tokenizer):
    tiny(vocabulary=49152, max_position_embeddings=2048).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr("sys.argv", ["bench", "--model", str(tmp_path), "--repeats", "1", "--epochs", "2",
                                     "--queries", "4"])
    code = offline.run_main(bench.main, lora.LoRAError)
    found = capsys.readouterr()
    assert code == 0, found.err
    for step in ("targets, 48 tokens", "ia2 stage", "sft stage", "evaluation", "icl evaluation"):
        assert re.search(rf"\| {step} +\| [\d.]+ +\| [\d.]+ +\| [\d.]+ ", found.out)


def test_the_reproduction_is_the_list_of_commands_that_the_committed_rows_need(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["reproduce"])
    assert offline.run_main(reproduce.main) == 0
    lines, made = capsys.readouterr().out.splitlines(), set()
    assert len(lines) == len(reproduce.RUNS)

    def collect(args):
        labels = args.labels or models.MODELS[args.model].labels
        for method, n, number, task in product({"base", "icl", *args.methods}, args.n, range(args.sets),
                                               args.eval):
            for lr in args.rates if method in sweep.STAGES else [None]:
                made.add((Path(args.out).name, labels, args.demos, n, number, lr, method, task, args.test))
        raise offline.UserError("collected")

    monkeypatch.setattr(ia2, "prepare", collect)
    for line in lines:
        monkeypatch.setattr("sys.argv", shlex.split(line, comments=True)[2:])
        assert offline.run_main(sweep.main) == 2 and "collected" in capsys.readouterr().err, line
    rows = [(file.parent.name, *(row[key] for key in ("labels", "demos", "n", "set", "lr", "method",
                                                      "eval_dataset", "test")))
            for file in Path("results").glob("*/results.jsonl") for row in offline.read_rows(file)]
    assert made == set(rows) and len(rows) == len(made)
