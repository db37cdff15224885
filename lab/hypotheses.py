"""The hypotheses of docs/plan.md, asked of the rows of its runs.

    python -m lab.hypotheses results/*/results.jsonl --anatomy results/anatomy/anatomy.jsonl

H1 is the primary test. H2 to H8 are secondary: their p values are adjusted together by Holm's
method, in which one that is not run yet counts as 1. Each has rows of its own; rows of other
models, dtypes, tasks or recipes are not looked at. A few-shot set is one value, the mean over its
tests (of H2 over both models, too), once all of them are there. There is no verdict before a run is
whole.
"""

import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

import metrics
from lab import comparisons
from lab.anatomy_report import read_files
from lab.cells import interval, p_text
from lab.comparisons import LEVEL, PLAN_RATE, paired, planned
from lab.report import read_all
from lab.rows import at_rate, check_rows, group
from support import cli
from support.records import grid

MARGIN = 0.05  # of accuracy, in which two methods count as equivalent
ASIM_MARGIN = 0.05  # how much less `asim` counts as no less
HALF = 0.5  # of the squared shift
SETS = comparisons.FEWEST_SETS  # of each hypothesis; of H2 half of them for each of two tasks
IN_POINTS = ("H1", "H3", "H4", "H5", "H8")  # those of accuracy
POWER = 0.8  # of the smallest difference that a test is likely to see


@dataclass(frozen=True)
class Run:
    """Which rows a run of the plan makes, of one model trained on one task: in float32, with n = 4,
    seed 0 and random few-shot sets.
    """

    model: str
    labels: str  # how they are written
    dataset: str
    tests: tuple[str, ...]
    queries: int  # of each test

    def made(self, row: dict) -> bool:
        wanted = {
            "model": self.model,
            "labels": self.labels,
            "dataset": self.dataset,
            "test": self.queries,
            "dtype": "float32",
            "n": 4,
            "seed": 0,
            "balanced": False,
        }
        is_wanted = all(row.get(field) == value for field, value in wanted.items())
        return is_wanted and row["eval_dataset"] in self.tests


MIDDLE = ("qwen2.5-coder-0.5b", "words")
LARGE = ("qwen2.5-coder-1.5b", "digits")
MODELS = (MIDDLE, LARGE)
R0 = tuple(
    Run(*model, dataset, (dataset, other), queries=60)
    for model in MODELS
    for dataset, other in (("sst2", "finsen"), ("movies", "amazon"))
)
R1 = Run(*LARGE, "sst2", ("sst2", "finsen", "poems"), queries=60)
R2 = Run(*MIDDLE, "movies", ("movies", "amazon"), queries=100)


# ---- statistics ----------------------------------------------------------------------------------


def one_sided(values: list[float], bound: float, alternative: str) -> float:
    """p of a t test that the mean is `greater` or `less` than a bound; nan for fewer than two."""
    if len(values) < 2:
        return math.nan
    return float(stats.ttest_1samp(values, bound, alternative=alternative).pvalue)


def equivalence(values: list[float], margin: float) -> float:
    """p of two one-sided tests that the mean lies within -margin to +margin (Schuirmann, 1987)."""
    below = one_sided(values, -margin, "greater")
    above = one_sided(values, margin, "less")
    return max(below, above)


def smallest_difference(values: list[float]) -> float:
    """(t(.975) + t(.80)) s / sqrt(sets): what a two-sided test would see with power .80."""
    if len(values) < 2:
        return math.nan
    freedom = len(values) - 1
    error = stdev(values) / math.sqrt(len(values))
    return float((stats.t.ppf(1 - LEVEL / 2, freedom) + stats.t.ppf(POWER, freedom)) * error)


# ---- the hypotheses ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What the rows say to a hypothesis, each list with a value for each few-shot set."""

    name: str
    text: str
    values: list[float]  # what is tested
    also: list[float]  # a second condition, where there is one
    p: float
    refuted: bool  # by the plan's own words


def differences(rows: list[dict], run: Run, field: str, first: str, second: str) -> list[float]:
    """first - second of a field at the planned rate, for each few-shot set with all its tests."""
    kept = [row for row in at_rate(planned(rows), PLAN_RATE) if run.made(row)]
    whole = []
    for same in group(kept, ["set"]).values():
        there = {(row["method"], row["eval_dataset"]) for row in same}
        if there >= set(itertools.product((first, second), run.tests)):
            whole += same
    return list(paired(whole, field, first, second).values())


def low(values: list[float]) -> float:
    return metrics.t_interval(values, 1 - LEVEL).low


def high(values: list[float]) -> float:
    return metrics.t_interval(values, 1 - LEVEL).high


def two_sided(name: str, text: str, values: list[float]) -> Answer:
    """A t test against zero, refuted where the interval lies below it."""
    return Answer(name, text, values, [], comparisons.p_value(values), high(values) < 0)


def headline(rows: list[dict], _) -> Answer:
    """H1: IA2 then SFT is more accurate than SFT."""
    values = differences(rows, R1, "accuracy", "ia2-sft", "sft")
    return two_sided("H1", "IA2 then SFT minus SFT, accuracy", values)


def constant(_, anatomy: list[dict]) -> Answer:
    """H2: at least half of the squared shift is one vector a layer. Tests and models of a set are
    averaged.
    """
    by_set = {}
    for run in R0:
        made = [record for record in anatomy if run.made(record)]
        for (number,), same in group(made, ["set"]).items():
            if len(same) == len(run.tests):
                share = fmean(record["share"] for record in same)
                by_set.setdefault((run.dataset, number), []).append(share - HALF)
    values = [fmean(shares) for shares in by_set.values() if len(shares) == len(MODELS)]
    return two_sided("H2", "the constant's share minus .50", values)


def near_and_wrong(rows: list[dict], _) -> Answer:
    """H3: steer is as near to ICL inside as IA2, and less accurate. Both conditions must hold."""
    accuracy = differences(rows, R1, "accuracy", "steer", "ia2")
    asim = differences(rows, R1, "asim", "steer", "ia2")
    p = max(one_sided(accuracy, 0, "less"), one_sided(asim, -ASIM_MARGIN, "greater"))
    refuted = low(accuracy) > 0 or high(asim) < -ASIM_MARGIN
    return Answer("H3", "steer minus IA2, accuracy (and asim)", accuracy, asim, p, refuted)


def mean_target(rows: list[dict], _) -> Answer:
    """H4: one mean target for all queries primes as well as the query's own."""
    values = differences(rows, R2, "accuracy", "mean-sft", "ia2-sft")
    p = equivalence(values, MARGIN)
    one_side = low(values) > 0 or high(values) < 0
    text = "mean-sft minus ia2-sft, accuracy: within 5 points"
    return Answer("H4", text, values, [], p, one_side and not p < LEVEL)


def beyond_format(rows: list[dict], _) -> Answer:
    """H5: priming is more than the answer's form."""
    values = differences(rows, R2, "accuracy", "ia2-sft", "format-sft")
    p = comparisons.p_value(values)
    refuted = high(values) < 0 or equivalence(values, MARGIN) < LEVEL
    text = "ia2-sft minus format-sft, accuracy"
    return Answer("H5", text, values, [], p, refuted)


def taken_over(rows: list[dict], _) -> Answer:
    """H6: IA2 tells the labels apart better than the base model."""
    values = differences(rows, R1, "label_auroc", "ia2", "base")
    return two_sided("H6", "ia2 minus base, AUROC of labels", values)


def told_apart(rows: list[dict], _) -> Answer:
    """H7: IA2 then SFT tells the labels apart better than SFT."""
    values = differences(rows, R1, "label_auroc", "ia2-sft", "sft")
    return two_sided("H7", "ia2-sft minus sft, AUROC of labels", values)


def calibrated(rows: list[dict], _) -> Answer:
    """H8: with batch calibration IA2 then SFT is more accurate than SFT."""
    values = differences(rows, R1, "accuracy_batch_calibrated", "ia2-sft", "sft")
    return two_sided("H8", "ia2-sft minus sft, accuracy after batch calibration", values)


SECONDARY: tuple[Callable, ...] = (
    constant,
    near_and_wrong,
    mean_target,
    beyond_format,
    taken_over,
    told_apart,
    calibrated,
)


def word(answer: Answer, p: float) -> str:
    """The verdict by the plan's rules; none before all few-shot sets are there."""
    if not answer.values:
        return "not run"
    if len(answer.values) < SETS:
        return f"none yet, {SETS} sets are planned"
    if answer.refuted:
        return "refuted"
    return "holds" if p < LEVEL else "undecided"


# ---- the table -----------------------------------------------------------------------------------


def line(answer: Answer, adjusted: float) -> list[str]:
    factor, digits = (100, 1) if answer.name in IN_POINTS else (1, 3)
    text = interval(answer.values, factor, digits, "+")
    if answer.also:
        text += f" (asim {interval(answer.also, 1, 3, '+')})"
    smallest = factor * smallest_difference(answer.values)
    return [
        answer.name,
        answer.text,
        text,
        str(len(answer.values)),
        "-" if math.isnan(smallest) else f"{smallest:.{digits}f}",
        p_text(answer.p),
        p_text(adjusted),
        word(answer, adjusted),
    ]


def adjusted_together(p_values: list[float]) -> list[float]:
    """Holm's adjustment for all hypotheses; one without a p value counts as 1 and keeps none."""
    counted = [1.0 if math.isnan(p) else p for p in p_values]
    found = []
    for p, adjusted in zip(p_values, comparisons.holm(counted)):
        found.append(p if math.isnan(p) else adjusted)
    return found


def table(rows: list[dict], anatomy: list[dict]) -> str:
    """H1 to H8 with intervals, p values and verdicts."""
    rows = [row for row in rows if not comparisons.is_former(row)]
    primary = headline(rows, anatomy)
    answers = [hypothesis(rows, anatomy) for hypothesis in SECONDARY]
    adjusted = adjusted_together([answer.p for answer in answers])
    lines = [line(primary, primary.p)]
    lines += [line(answer, p) for answer, p in zip(answers, adjusted)]
    head = ["", "measured", "mean [95%]", "sets", "smallest seen", "p", "p by Holm", "verdict"]
    return grid([head, *lines])


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("files", nargs="*", metavar="FILE", help="results.jsonl of the plan's runs")
    parser.add_argument("--anatomy", nargs="*", default=[], metavar="FILE", help="anatomy.jsonl")
    args = parser.parse_args(argv)
    rows = read_all(args.files)
    check_rows(rows)
    print(table(rows, read_files(args.anatomy)))


if __name__ == "__main__":
    sys.exit(cli.run_main(main))
