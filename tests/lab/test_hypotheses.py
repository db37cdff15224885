"""pytest tests/lab/test_hypotheses.py: the plan's tests against scipy and written-out formulas; a
verdict follows the plan's rules.
"""

import math
import random
from statistics import fmean, stdev

import pytest
from samples import row as sample_row
from scipy import stats

from lab import comparisons, hypotheses

TRAINED = {"lr": 3e-4, "rank": 8, "epochs": 50, "keep": "best"}


def planned_fields(run):
    """What all rows of a run share."""
    return {
        "model": run.model,
        "labels": run.labels,
        "dataset": run.dataset,
        "test": run.queries,
        "dtype": "float32",
        "n": 4,
        "seed": 0,
        "balanced": False,
    }


def rows_of(run, **methods):
    """Rows that a run would make of methods, each with a list of (accuracy, asim), one for each
    few-shot set; on its first test a tenth above, on the last as much below.
    """
    rows = []
    offs = {run.tests[0]: 0.1, run.tests[-1]: -0.1}
    for name, values in methods.items():
        method = name.replace("_", "-")
        for number, (accuracy, asim) in enumerate(values):
            for test in run.tests:
                trained = {"lr": None} if method in ("base", "steer") else TRAINED
                off = offs.get(test, 0.0) if method.startswith("ia2") else 0.0
                found = {
                    **trained,
                    **planned_fields(run),
                    "eval_dataset": test,
                    "method": method,
                    "set": number,
                    "train_data": f"train {number}",
                    "accuracy": accuracy + off,
                    "asim": asim,
                }
                rows.append(sample_row(**found))
    return rows


def around(mean, spread, sets=20, seed=0):
    rng = random.Random(seed)
    return [rng.gauss(mean, spread) for _ in range(sets)]


def flat(accuracies, asim=0.8):
    return [(accuracy, asim) for accuracy in accuracies]


def verdicts(rows, anatomy=()):
    """{hypothesis: its line}"""
    lines = hypotheses.table(rows, list(anatomy)).split("\n")[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {line[0]: line for line in cells}


# ---- statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.0, 0.02, 0.06])
def test_equivalence_is_the_90_percent_interval_inside_the_margin(mean):
    for seed in range(20):
        values = around(mean, 0.06, sets=12, seed=seed)
        half = stats.t.ppf(0.95, 11) * stdev(values) / math.sqrt(12)
        inside = abs(fmean(values)) + half < 0.05
        assert (hypotheses.equivalence(values, 0.05) < 0.05) == inside


def test_the_smallest_difference_is_that_of_the_formula():
    values = around(0, 0.234)
    factor = stats.t.ppf(0.975, 19) + stats.t.ppf(0.8, 19)
    expected = factor * stdev(values) / math.sqrt(20)
    assert hypotheses.smallest_difference(values) == pytest.approx(expected, rel=1e-9)


# ---- verdicts ------------------------------------------------------------------------------------


def test_nothing_is_said_without_rows():
    assert {line[-1] for line in verdicts([]).values()} == {"not run"}


@pytest.mark.parametrize("gain, word", [(0.2, "holds"), (0.0, "undecided"), (-0.2, "refuted")])
def test_the_headline_is_a_two_sided_test_of_the_large_models_rows(gain, word):
    rows = rows_of(
        hypotheses.R1, sft=flat(around(0.6, 0.1)), ia2_sft=flat(around(0.6 + gain, 0.1, seed=1))
    )
    assert verdicts(rows)["H1"][-1] == word
    other = [{**row, "model": "smollm2-135m"} for row in rows]
    faster = [{**row, "lr": 1e-3} for row in rows]
    former = [{**row, "procedure": "1"} for row in rows]
    dtype = [{**row, "dtype": "bfloat16"} for row in rows]
    seed = [{**row, "seed": 1} for row in rows]
    style = [{**row, "labels": "words"} for row in rows]
    longer = [{**row, "test": 100} for row in rows]
    part = [row for row in rows if row["eval_dataset"] != "poems"]  # no set has all its tests
    for beside in (other, faster, former, dtype, seed, style, longer, part):
        assert verdicts(beside)["H1"][-1] == "not run"
    rest = [{**row, "seed": 1} for row in rows if row["eval_dataset"] == "poems"]
    assert verdicts(part + other + dtype + rest)["H1"][-1] == "not run"


@pytest.mark.parametrize("gain, word", [(0.2, "holds"), (0.0, "undecided"), (-0.2, "refuted")])
@pytest.mark.parametrize(
    "name, first, second, field",
    [
        ("H6", "ia2", "base", "label_auroc"),
        ("H7", "ia2_sft", "sft", "label_auroc"),
        ("H8", "ia2_sft", "sft", "accuracy_batch_calibrated"),
    ],
)
def test_how_well_labels_are_told_apart_is_asked_of_the_large_model(
    name, first, second, field, gain, word
):
    values = {first: flat(around(0.7 + gain, 0.05)), second: flat(around(0.7, 0.05, seed=1))}
    rows = []
    for row in rows_of(hypotheses.R1, **values):
        rows.append({**row, field: row["accuracy"], "accuracy": 0.5})
    assert verdicts(rows)[name][-1] == word


@pytest.mark.parametrize(
    "accuracy, asim, word",
    [
        (-0.2, 0.0, "holds"),
        (-0.2, -0.2, "refuted"),  # not near
        (0.2, 0.0, "refuted"),  # not worse
        (0.0, 0.0, "undecided"),
    ],
)
def test_near_and_wrong_needs_both(accuracy, asim, word):
    ia2 = list(zip(around(0.7, 0.05), around(0.85, 0.02)))
    steer = list(zip(around(0.7 + accuracy, 0.05, seed=1), around(0.85 + asim, 0.02, seed=2)))
    assert verdicts(rows_of(hypotheses.R1, ia2=ia2, steer=steer))["H3"][-1] == word


@pytest.mark.parametrize(
    "gap, spread, word",
    [(0.0, 0.03, "holds"), (0.1, 0.03, "refuted"), (0.0, 0.3, "undecided")],
)
def test_the_mean_target_is_equivalent_or_not(gap, spread, word):
    base = around(0.75, 0.05)
    other = [value - gap + noise for value, noise in zip(base, around(0, spread, seed=3))]
    rows = rows_of(hypotheses.R2, ia2_sft=flat(base), mean_sft=flat(other))
    assert verdicts(rows)["H4"][-1] == word


@pytest.mark.parametrize("gain, word", [(0.1, "holds"), (-0.1, "refuted"), (0.0, "refuted")])
def test_priming_beyond_format_is_refuted_by_equivalence_too(gain, word):
    base = around(0.75, 0.05)
    other = [value - gain + noise for value, noise in zip(base, around(0, 0.02, seed=4))]
    rows = rows_of(hypotheses.R2, ia2_sft=flat(base), format_sft=flat(other))
    assert verdicts(rows)["H5"][-1] == word


def shares_of(runs, shares):
    """Records of the anatomy: a tenth more on the first test, a twentieth less with one model."""
    records = []
    for run in runs:
        for number, share in enumerate(shares):
            for test in run.tests:
                off = 0.1 if test == run.tests[0] else -0.1
                off += -0.05 if "0.5b" in run.model else 0.05
                found = {"eval_dataset": test, "set": number, "share": share + off}
                records.append({**planned_fields(run), **found})
    return records


@pytest.mark.parametrize("share, word", [(0.7, "holds"), (0.3, "refuted")])
def test_the_constants_share_is_averaged_over_the_models_and_tests_of_a_set(share, word):
    shares = around(share, 0.05, sets=10)
    anatomy = shares_of(hypotheses.R0, shares)
    anatomy.append({**anatomy[0], "n": 8, "share": 9.0})
    anatomy.append({**anatomy[0], "model": "smollm2-135m", "share": 9.0})
    anatomy.append({**anatomy[0], "seed": 1, "share": 9.0})
    anatomy.append({**anatomy[0], "test": 100, "share": 9.0})
    line = verdicts([], anatomy)["H2"]
    assert line[-1] == word and line[3] == "20"
    assert line[2].startswith(f"{fmean(shares) - 0.5:+.3f}")
    one_model = [run for run in hypotheses.R0 if "0.5b" in run.model]
    assert verdicts([], shares_of(one_model, shares))["H2"][-1] == "not run"
    one_task = [run for run in hypotheses.R0 if run.dataset == "movies"]
    assert verdicts([], shares_of(one_task, shares))["H2"][-1] == "none yet, 20 sets are planned"


def test_a_run_that_is_not_whole_gets_no_verdict():
    base, other = around(0.8, 0.05, sets=19), around(0.5, 0.05, sets=19, seed=1)
    line = verdicts(rows_of(hypotheses.R1, sft=flat(other), ia2_sft=flat(base)))["H1"]
    assert line[3] == "19" and line[-1] == "none yet, 20 sets are planned"
    line = verdicts(rows_of(hypotheses.R1, sft=flat(other[:1]), ia2_sft=flat(base[:1])))["H1"]
    assert line[3] == "1" and line[-1] == "none yet, 20 sets are planned"


def test_secondary_p_values_are_adjusted_together():
    base = around(0.75, 0.05)
    other = [value - 0.02 + noise for value, noise in zip(base, around(0, 0.03, seed=4))]
    alone = rows_of(hypotheses.R2, ia2_sft=flat(base), format_sft=flat(other))
    both = alone + rows_of(hypotheses.R2, mean_sft=flat(around(0.75, 0.2, seed=5)))
    values = [one - two for one, two in zip(base, other)]
    p = stats.ttest_1samp(values, 0).pvalue
    others = [1.0] * 5  # H2, H3 and H6 to H8 are not run and count as 1, and so does H4 at first
    adjusted = float("0" + verdicts(alone)["H5"][6])
    assert adjusted == pytest.approx(comparisons.holm([p, 1.0, *others])[0], abs=1e-4)
    assert adjusted == pytest.approx(7 * p, abs=1e-4)
    adjusted = float("0" + verdicts(both)["H5"][6])
    assert adjusted == pytest.approx(comparisons.holm([p, 0.9, *others])[0], abs=1e-4)
