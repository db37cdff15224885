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


def rows_of(where, **methods):
    """Rows of methods, each with a list of (accuracy, asim), one for each few-shot set."""
    rows = []
    for name, values in methods.items():
        method = name.replace("_", "-")
        for number, (accuracy, asim) in enumerate(values):
            trained = {"lr": None} if method == "steer" else TRAINED
            found = {
                **where,
                **trained,
                "n": 4,
                "eval_dataset": where["dataset"],
                "method": method,
                "set": number,
                "train_data": f"train {number}",
                "accuracy": accuracy,
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
        hypotheses.LARGE, sft=flat(around(0.6, 0.1)), ia2_sft=flat(around(0.6 + gain, 0.1, seed=1))
    )
    assert verdicts(rows)["H1"][-1] == word
    other = [{**row, "model": "smollm2-135m"} for row in rows]
    faster = [{**row, "lr": 1e-3} for row in rows]
    former = [{**row, "procedure": "1"} for row in rows]
    for beside in (other, faster, former):
        assert verdicts(beside)["H1"][-1] == "not run"


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
    assert verdicts(rows_of(hypotheses.LARGE, ia2=ia2, steer=steer))["H3"][-1] == word


@pytest.mark.parametrize(
    "gap, spread, word",
    [(0.0, 0.03, "holds"), (0.1, 0.03, "refuted"), (0.0, 0.3, "undecided")],
)
def test_the_mean_target_is_equivalent_or_not(gap, spread, word):
    base = around(0.75, 0.05)
    other = [value - gap + noise for value, noise in zip(base, around(0, spread, seed=3))]
    rows = rows_of(hypotheses.MIDDLE, ia2_sft=flat(base), mean_sft=flat(other))
    assert verdicts(rows)["H4"][-1] == word


@pytest.mark.parametrize("gain, word", [(0.1, "holds"), (-0.1, "refuted"), (0.0, "refuted")])
def test_priming_beyond_format_is_refuted_by_equivalence_too(gain, word):
    base = around(0.75, 0.05)
    other = [value - gain + noise for value, noise in zip(base, around(0, 0.02, seed=4))]
    rows = rows_of(hypotheses.MIDDLE, ia2_sft=flat(base), format_sft=flat(other))
    assert verdicts(rows)["H5"][-1] == word


@pytest.mark.parametrize("share, word", [(0.7, "holds"), (0.3, "refuted")])
def test_the_constants_share_is_averaged_over_the_models_and_tests_of_a_set(share, word):
    anatomy = []
    shares = around(share, 0.05)
    for number, value in enumerate(shares):
        for off, model in ((-0.1, "a"), (0.1, "b")):
            anatomy.append(
                {"n": 4, "model": model, "dataset": "x", "set": number, "share": value + off}
            )
    anatomy.append({"n": 8, "model": "a", "dataset": "x", "set": 0, "share": 9.0})
    line = verdicts([], anatomy)["H2"]
    assert line[-1] == word and line[3] == "20"
    assert line[2].startswith(f"{fmean(shares) - 0.5:+.3f}")


def test_a_run_that_is_not_whole_gets_no_verdict():
    base, other = around(0.8, 0.05, sets=19), around(0.5, 0.05, sets=19, seed=1)
    line = verdicts(rows_of(hypotheses.LARGE, sft=flat(other), ia2_sft=flat(base)))["H1"]
    assert line[3] == "19" and line[-1] == "none yet, 20 sets are planned"


def test_secondary_p_values_are_adjusted_together():
    base = around(0.75, 0.05)
    other = [value - 0.02 + noise for value, noise in zip(base, around(0, 0.03, seed=4))]
    alone = rows_of(hypotheses.MIDDLE, ia2_sft=flat(base), format_sft=flat(other))
    both = alone + rows_of(hypotheses.MIDDLE, mean_sft=flat(around(0.75, 0.2, seed=5)))
    values = [one - two for one, two in zip(base, other)]
    p = stats.ttest_1samp(values, 0).pvalue
    assert verdicts(alone)["H5"][5] == verdicts(alone)["H5"][6]
    adjusted = float("0" + verdicts(both)["H5"][6])
    assert adjusted == pytest.approx(comparisons.holm([p, 0.9])[0], abs=1e-4)
