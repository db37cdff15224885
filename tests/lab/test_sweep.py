"""pytest tests/lab/test_sweep.py: what the runs of a sweep share, how they resume, its options."""

import json
import math
import os
import random
import time
from collections import Counter
from pathlib import Path

import children
import pytest
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from samples import write_lines

import data
import ia2
from engine import peft_files
from lab import rows as result_rows
from lab import sweep, variants
from support import records

ROOT = Path(__file__).parents[2]
TRAINED = [name for name, method in variants.METHODS.items() if method.path]
ALL = ("--methods", *variants.METHODS)


def by_key(rows):
    """{what a row is about: the row without times, command and overlaps}; no row twice."""
    found = {}
    for row in rows:
        changing = ("command", "commit", "overlap", "seconds", "peak_memory_gb")
        kept = {key: value for key, value in row.items() if key not in changing}
        kept["stages"] = [{**stage, "seconds": None} for stage in row.get("stages") or []]
        found[records.row_key(row)] = kept
    assert len(found) == len(rows)
    return found


@pytest.fixture
def run(call):
    """run(*options) runs a sweep that must end well."""

    def run(*options, **more):
        result = call(*options, main=sweep.main, **more)
        assert result.code == 0, result.err
        return result

    return run


def rows_of(result, method):
    return [row for row in result.rows if row["method"] == method]


# ---- what a sweep runs ---------------------------------------------------------------------------


def test_a_sweep_has_every_run_and_trains_what_methods_share_once(run, monkeypatch):
    trained = []
    train = ia2.train

    def watched(model, loss_fn, *rest):
        trained.append(loss_fn.__name__)
        return train(model, loss_fn, *rest)

    monkeypatch.setattr(ia2, "train", watched)
    result = run("--lr", 1e-2, "--eval", "sst2", "poems", *ALL)
    assert len(by_key(result.rows)) == 2 * (3 + len(TRAINED))
    assert Counter(trained) == {
        "ia2_loss": 2,  # first, and after SFT
        # alone, with twice the epochs, and after ia2, mean, rotated, flipped, format, random
        "sft_loss": 8,
        "ia2+sft_loss": 1,
        "sft_icl_loss": 1,
        "kd_loss": 1,
        "mean_loss": 1,
        "rotated_loss": 1,
        "flipped_loss": 1,
        "format_loss": 1,
        "steered-sft_loss": 1,
        "sft_balanced_loss": 1,
        "sft_smooth_loss": 1,
        "sft_labels_loss": 1,
    }
    for method in ("base", "icl", *variants.METHODS):
        assert f"| {method} " in result.out
        for row in rows_of(result, method):
            assert math.isfinite(row["accuracy"] + row["nll"] + row["asim"] + row["asim_centred"])
    fields = {field for row in result.rows for field, _ in result_rows.options(row)}
    assert fields == {"epochs", "keep", "rank"}, "what training leaves is no option of it"
    steered = rows_of(result, "steer")
    assert len(steered) == 2 and not any("lr" in row for row in steered)


def test_a_dose_of_ia2_leaves_what_follows_as_it_is(run):
    result = run("--methods", "ia2", "ia2-sft", "--epochs", 3, "--primer-epochs", 1)
    [alone] = rows_of(result, "ia2")
    [both] = rows_of(result, "ia2-sft")
    assert [stage["steps"] for stage in alone["stages"]] == [3]
    assert [stage["steps"] for stage in both["stages"]] == [1, 3]
    assert both["primer_epochs"] == 1 and "primer_epochs" not in alone
    whole = run("--methods", "ia2-sft", "--epochs", 3).rows[-1]
    assert [stage["steps"] for stage in whole["stages"]] == [3, 3]
    assert whole["run"] != both["run"]


def test_overlaps_are_with_the_adapters_of_the_same_and_of_another_set(run):
    rows = run("--sets", 2).rows
    first, second = [row["overlap"] for row in rows if row["method"] == "ia2-sft"]
    assert set(first) == {"sft", "ia2", "chance"}
    assert set(second) == {"sft", "ia2", "sft, other set", "ia2, other set", "chance"}
    assert second["ia2"] > second["chance"]
    run("--set", 0, out="alone")
    alone = [row["overlap"] for row in run("--set", 1, out="alone").rows if "overlap" in row]
    assert alone[-1] == second, "also where each set is a command of its own"


def test_free_text_runs_with_all_methods_that_need_no_labels(run):
    methods = []
    for name, method in variants.METHODS.items():
        if not method.corrected and not set(method.path) & set(variants.NEED_LABELS):
            methods.append(name)
    result = run("--dataset", "gsm8k", "--max-tokens", 3, "--methods", *methods)
    assert [row["method"] for row in result.rows if "lr" not in row] == ["base", "icl", "steer"]
    assert {row["method"] for row in result.rows} == {"base", "icl", *methods}


def test_a_row_of_a_sweep_is_that_of_the_main_job(run, call):
    tests = ("--eval", "sst2", "poems")
    swept = by_key(run("--n", 2, 4, "--sets", 2, "--lr", 1e-2, *tests).rows)
    options = ("--n", 4, "--set", 1, "--lr", 1e-2, *tests)
    main = call(*options, out="alone", main=ia2.main)
    alone = by_key(main.rows)
    assert len(alone) == 10 and set(alone) < set(swept)
    for key, row in alone.items():
        assert row == swept[key]


def test_each_few_shot_set_has_test_queries_of_its_own(run):
    rows = run("--sets", 2, "--methods", "base", "icl").rows
    assert len({row["test_data"] for row in rows}) == 2


def test_an_epoch_more_is_all_that_sft_100_differs_in(run):
    """With a rate so small that the dev loss falls at each step, both use all their epochs."""
    options = ("--methods", "sft", "sft-100", "--lr", 1e-4)
    result = run(*options, quick=("--epochs", 3, "--test", 4))
    [short], [long] = rows_of(result, "sft"), rows_of(result, "sft-100")
    assert (short["steps"], long["steps"]) == (3, 6)
    history = long["stages"][0]["history"]
    assert history[:3] == short["stages"][0]["history"]


def test_sft_100_trains_all_its_epochs_where_sft_stops(run, monkeypatch):
    monkeypatch.setattr(ia2, "average_loss", lambda *_: 1.0)
    options = ("--methods", "sft", "sft-100", "--lr", 1e-3)
    result = run(*options, quick=("--epochs", 8, "--test", 4))
    [short], [long] = rows_of(result, "sft"), rows_of(result, "sft-100")
    assert (short["steps"], long["steps"]) == (6, 16)
    assert short["stages"][0]["kept_step"] == long["stages"][0]["kept_step"] == 1


def test_the_prior_correction_leaves_training_as_it_is(run, tmp_path):
    result = run("--methods", "sft", "sft-prior", "--lr", 1e-2)
    [plain], [corrected] = rows_of(result, "sft"), rows_of(result, "sft-prior")
    for field in ("dev_loss", "steps", "asim", "asim_centred", "label_mass"):
        assert corrected[field] == pytest.approx(plain[field], rel=1e-6)
    assert corrected["nll"] != plain["nll"]
    weights = [
        load_file(tmp_path / "out" / row["run"] / peft_files.WEIGHTS) for row in (plain, corrected)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_random_primer_is_what_sft_starts_from(run, monkeypatch):
    """The adapter that SFT begins with has the norms of IA2's, which is trained for it."""
    starts = []
    train = ia2.train

    def watched(model, loss_fn, *rest):
        before = {name: weight.norm().item() for name, weight in ia2.lora.weights(model).items()}
        stage = train(model, loss_fn, *rest)
        after = {name: weight.norm().item() for name, weight in ia2.lora.weights(model).items()}
        starts.append((loss_fn.__name__, before, after))
        return stage

    monkeypatch.setattr(ia2, "train", watched)
    [row] = rows_of(run("--methods", "random-sft", "--lr", 1e-2), "random-sft")
    assert [name for name, _, _ in starts] == ["ia2_loss", "sft_loss"]
    assert starts[1][1] == pytest.approx(starts[0][2], rel=1e-4)
    assert [stage["name"] for stage in row["stages"]] == ["sft"]


# ---- resuming ------------------------------------------------------------------------------------


def test_the_same_command_again_runs_nothing_and_prints_the_same(run, monkeypatch):
    options = ("--n", 2, 4, "--lr", 1e-3, 1e-2, "--methods", "ia2-sft", "steer", "steer-sft")
    first = run(*options)
    monkeypatch.setattr(ia2, "train", None)
    monkeypatch.setattr(ia2, "evaluate", None)
    again = run(*options)
    assert (again.out, again.rows) == (first.out, first.rows)


def test_only_what_is_missing_is_run(run, monkeypatch):
    run("--methods", "sft")
    trained = []
    train = ia2.train

    def watched(model, loss_fn, *rest):
        trained.append(loss_fn.__name__)
        return train(model, loss_fn, *rest)

    monkeypatch.setattr(ia2, "train", watched)
    result = run("--methods", "sft", "mean", "ia2")
    assert trained == ["ia2_loss", "mean_loss"]
    assert [row["method"] for row in result.rows] == ["base", "icl", "sft", "ia2", "mean"]


def test_job_arrays_add_up_to_the_sweep(run):
    options = ("--n", 2, 4, "--lr", 1e-3, 1e-2, "--methods", "ia2-sft", "steer")
    whole = by_key(run("--sets", 2, *options).rows)
    for i in (1, 0):
        parts = run("--set", i, *options, out="parts").rows
    assert by_key(parts) == whole


def test_a_sweep_killed_three_times_ends_as_if_never_killed(run, place, tmp_path):
    options = ("--n", 2, 4, "--sets", 2, "--lr", 1e-2)
    expected = by_key(run(*options, out="whole").rows)
    words = (
        *("--data-dir", place / "bench", "--model", place / "tiny", "--out", tmp_path / "killed"),
        *("--epochs", 2, "--test", 6, *options),
    )
    rng = random.Random(os.urandom(4))
    file = tmp_path / "killed" / "results.jsonl"

    def size():
        return file.stat().st_size if file.exists() else 0

    for _ in range(3):
        before = size()
        process = children.start(*words).process
        while process.is_alive() and size() == before:
            time.sleep(0.02)  # until it has done something, so that each start gets further
        time.sleep(rng.uniform(0, 1))
        process.kill()
        process.join()
    rows = by_key(run(*options, out="killed").rows)
    assert set(rows) == set(expected)
    for key, row in rows.items():
        row.pop("forgets", None)  # of more texts in a process of its own
        for name, value in row.items():
            if isinstance(value, float):
                assert value == pytest.approx(expected[key][name], abs=1e-4), (key, name)
            elif not isinstance(value, list):
                assert value == expected[key][name], (key, name)


def test_adapters_are_written_and_read_under_the_lock_of_their_folder(run, tmp_path, monkeypatch):
    """So no process reads an adapter that another is replacing."""
    seen = set()

    def watch(module, name):
        original = getattr(module, name)

        def held(*args, **kwargs):
            lock = FileLock(tmp_path / "out" / records.LOCK, timeout=0)
            with pytest.raises(Timeout), lock:
                pass
            seen.add(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, held)

    watch(peft_files, "save")
    watch(sweep, "load_file")
    run("--sets", "1")
    assert seen == {"save", "load_file"}


# ---- options: each makes a run of its own --------------------------------------------------------


def test_without_demos_the_ia2_loss_is_zero_and_nothing_changes(run):
    result = run("--demos", "none", "--methods", "ia2", "steer")
    base, icl, steered, trained = result.rows
    assert base["asim"] == pytest.approx(1, abs=1e-6) and icl["agreement"] == 1
    assert trained["stages"][0]["first_loss"] == pytest.approx(0, abs=1e-8)
    for field in ("accuracy", "nll", "label_mass"):
        for row in (icl, steered):
            assert row[field] == pytest.approx(base[field], abs=1e-6)
        # Adam's steps do not shrink with the gradient, which is rounding noise here.
        assert trained[field] == pytest.approx(base[field], abs=1e-3)
    assert all(row["demos"] == "none" for row in result.rows)


@pytest.mark.parametrize("demos", ["flipped", "foreign"])
def test_other_demos_are_other_runs_with_other_targets(demos, run):
    own = run("--methods", "ia2").rows  # base and icl are always there
    other = run("--demos", demos, "--methods", "ia2", out="other").rows
    assert [row["method"] for row in own] == ["base", "icl", "ia2"]
    assert {row["run"] for row in own}.isdisjoint(row["run"] for row in other)
    assert own[0]["train_data"] == other[0]["train_data"]
    assert own[-1]["dev_loss"] != other[-1]["dev_loss"]
    assert {row["demos"] for row in other} == {
        "flipped" if demos == "flipped" else "foreign: finsen"
    }
    assert not any("demos" in row for row in own)


@pytest.mark.parametrize(
    "option, method",
    [
        ("--sft-on icl", "sft"),
        ("--sft-on icl", "steer-sft"),
        ("--sft-on gold", "ia2+sft"),
        ("--beta 2", "ia2+sft"),
        ("--targets unlabelled --queries 3", "ia2"),
        ("--targets unlabelled --queries 3", "steer"),
        ("--targets unlabelled", "mean-sft"),
        ("--steer-at all", "steer"),
        ("--steer-at all", "steer-sft"),
        ("--keep last", "sft"),
    ],
)
def test_an_option_makes_a_run_of_its_own_with_other_figures(option, method, run):
    usual = run("--methods", method, "--lr", 1e-2)
    both = run("--methods", method, "--lr", 1e-2, *option.split())
    [plain, changed] = rows_of(both, method)
    assert rows_of(usual, method) == [plain]
    assert plain["run"] != changed["run"]
    if option != "--keep last":  # after so few steps the last may be the best
        assert plain["label_mass"] != changed["label_mass"]
    assert len(both.rows) == 4, "base and icl do not depend on it"


def test_an_option_leaves_methods_alone_that_do_not_depend_on_it(run):
    options = ("--targets", "unlabelled", "--beta", 2, "--steer-at", "all", "--sft-on", "gold")
    before = run("--methods", "sft-balanced", "ia2").rows
    after = run("--methods", "sft-balanced", "ia2", *options).rows
    assert [row["method"] for row in after] == ["base", "icl", "ia2", "sft-balanced", "ia2"]
    assert after[:4] == before


@pytest.mark.parametrize(
    "words, idle",
    [
        ("--beta 2 --methods ia2", "--beta"),
        (
            "--steer-at all --targets unlabelled --methods sft",
            "--targets unlabelled and --steer-at",
        ),
        ("--sft-on icl --methods sft-balanced", "--sft-on icl"),
        ("--primer-epochs 2 --methods sft", "--primer-epochs"),
        ("--sft-on icl --beta 2 --methods ia2+sft", None),
        ("--sft-on gold --methods sft", None),
        ("--primer-epochs 2 --steer-at all --methods ia2-sft steer", None),
    ],
)
def test_an_option_that_changes_no_method_is_named(words, idle, monkeypatch, tmp_path, capsys):
    class Enough(Exception):
        pass

    def stop(*given):
        raise Enough

    monkeypatch.setattr(variants, "check_methods", lambda *given: None)
    monkeypatch.setattr(data, "balance", stop)
    with pytest.raises(Enough):
        options = ["--model", "smollm2-135m", "--device", "cpu", "--out", str(tmp_path)]
        sweep.main(["--dataset", "movies", *options, *words.split()])
    said = [line for line in capsys.readouterr().err.splitlines() if "changes none" in line]
    assert len(said) == bool(idle) and (not idle or said[0].startswith(idle))


def test_unlabelled_targets_train_ia2_on_the_queries_and_sft_on_the_examples(run, monkeypatch):
    sizes = {}
    train = ia2.train

    def watched(model, loss_fn, targets, dev, recipe):
        sizes[loss_fn.__name__] = len(targets)
        return train(model, loss_fn, targets, dev, recipe)

    monkeypatch.setattr(ia2, "train", watched)
    options = ("--targets", "unlabelled", "--queries", 6, "--methods", "ia2-sft", "kd")
    rows = run(*options).rows
    assert sizes == {"ia2_loss": 6, "sft_loss": 4, "kd_loss": 6}
    assert [row.get("queries") for row in rows] == [None, None, 6, 6]


@pytest.mark.parametrize(
    "options, message",
    [
        ("--queries 4", "--queries needs --targets unlabelled; give both, or neither"),
        ("--targets unlabelled --queries 500", "--queries 500 is more than the 18 examples"),
        (
            "--targets unlabelled --sft-on gold --methods ia2+sft",
            "unlabelled queries have no true responses for ia2+sft --sft-on gold",
        ),
        ("--dataset gsm8k --methods format", "the method format needs a task with labels"),
        (
            "--demos foreign --eval finsen poems",
            "--demos foreign needs a task with the labels of sst2",
        ),
        ("--methods stear", "invalid choice: 'stear'"),
    ],
)
def test_wrong_options_are_one_sentence(options, message, call, tmp_path):
    result = call(*options.split(), main=sweep.main)
    assert result.code == 2 and message in result.err.splitlines()[-1], result.err
    assert list(tmp_path.rglob("*.jsonl")) == [], "nothing was run before"


def test_one_set_under_two_names_is_refused(call, place, tmp_path):
    """Two names that read the same folder stand for what sst2 and movies are without a hub."""
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        for part in ("train", "test"):
            lines = (place / "bench" / "sst2" / f"{part}.jsonl").read_text().splitlines()
            rows = []
            for row in map(json.loads, lines):
                rows.append({"query": f"{row['sentence']}:", "response": row["label"]})
            write_lines(folder / f"{part}.jsonl", rows)
    result = call("--dataset", tmp_path / "one", "--eval", tmp_path / "two", main=sweep.main)
    assert result.code == 2 and "are the same texts here" in result.err.splitlines()[-1]


def test_help_has_a_sentence_for_each_method(capsys):
    with pytest.raises(SystemExit):
        sweep.sweep_parser().parse_args(["--help"])
    text = capsys.readouterr().out
    for name, method in variants.METHODS.items():
        assert f"  {name}: {method.sentence}" in text


# ---- the bundled model ---------------------------------------------------------------------------


def test_steering_gives_the_bundled_model_the_form_of_the_answer(run):
    """Without any training most of the probability goes to the two labels, as with demos."""
    options = ("--model", "smollm2-135m", "--dataset", "movies", "--methods", "steer", "steer-sft")
    result = run(*options, quick=("--n", 2, "--epochs", 1, "--test", 6))
    rows = {row["method"]: row for row in result.rows}
    assert list(rows) == ["base", "icl", "steer", "steer-sft"]
    assert rows["base"]["label_mass"] < 0.5 < rows["steer"]["label_mass"]
    assert rows["base"]["asim"] < rows["steer"]["asim"]
    assert rows["steer-sft"]["stages"][0]["name"] == "steered-sft"
