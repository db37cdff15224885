"""What rows say about differences between methods: intervals, one primary test, secondary tests.

The unit is the few-shot set. Its tests, its n and the models that were trained on it are averaged
first, so that nothing counts as independent that shares its texts. What is tested is fixed here,
before runs: one primary test, and the paper's claims with Holm's correction. All else is
exploratory and gets no verdict.
"""

import math
from dataclasses import dataclass
from statistics import fmean

from scipy import stats

import metrics
from lab import rows as result_rows
from lab.rows import SETTING, is_number
from support.cli import UserError

# The plan: the primary test is made on these rows alone, the others stand beside it.
PLAN_RATE = 3e-4
PLAN_OPTIONS = {"rank": "8", "epochs": "50", "keep": "best"}
LEVEL = 0.05
FEWEST_SETS = 20  # few-shot sets, for a verdict: with fewer the plan gives none


# ---- paired differences --------------------------------------------------------------------------


def paired(rows: list[dict], field: str, first: str, second: str) -> dict[tuple, float]:
    """first - second of a field for each independent few-shot set.

    The rows hold one arm of each method, at one rate each; both methods answered the same queries.
    Raises UserError where a model's rows are in two dtypes, which are never averaged.
    """
    check_dtypes(rows)
    model_fields = [name for name in SETTING if name != "n"]
    cells = {}
    for row in rows:
        if row["method"] in (first, second) and is_number(row.get(field)):
            model = tuple(result_rows.setting(row, name) for name in model_fields)
            test = (row["eval_dataset"], row.get("test_data"))
            cell = (result_rows.independent_set(row), model, row["n"], test)
            cells.setdefault(cell, {})[row["method"]] = row[field]
    differences = {}
    for cell, values in cells.items():
        if len(values) == 2:
            differences[cell] = values[first] - values[second]
    by_model = means(differences, 2)  # over n and tests
    by_set = means(by_model, 1)
    return {few_shot: value for (few_shot,), value in by_set.items()}


def means(values: dict[tuple, float], length: int) -> dict[tuple, float]:
    """The mean of the values whose keys are alike in their first `length` parts, by these."""
    alike = {}
    for key, value in values.items():
        alike.setdefault(key[:length], []).append(value)
    return {key: fmean(found) for key, found in alike.items()}


def in_two_dtypes(rows: list[dict]) -> dict[str, list[str]]:
    """{model: its dtypes} of the models that have rows in more than one."""
    found = {}
    for (_, model), same in result_rows.group(rows, ("procedure", "model")).items():
        dtypes = sorted({result_rows.setting(row, "dtype") for row in same})
        if len(dtypes) > 1:
            found[model] = dtypes
    return found


def check_dtypes(rows: list[dict]) -> None:
    for model, dtypes in in_two_dtypes(rows).items():
        raise UserError(
            f"there are rows of {model} in {' and '.join(dtypes)}, and rows of two dtypes are "
            "never averaged; keep those of one"
        )


def by_dtype(rows: list[dict]) -> list[list[dict]]:
    """The rows, apart by dtype where some model has rows in two, as these are never averaged."""
    return list(result_rows.group(rows, ["dtype"]).values()) if in_two_dtypes(rows) else [rows]


def mean_of_rates(by_rate: list[dict[tuple, float]]) -> dict[tuple, float]:
    """The mean over one rate or more, of the few-shot sets that have all of them."""
    first, *others = by_rate
    shared = [few_shot for few_shot in first if all(few_shot in other for other in others)]
    return {few_shot: fmean(each[few_shot] for each in by_rate) for few_shot in shared}


def p_value(values: list[float]) -> float:
    """Two-sided p of a t test of values against zero; nan for fewer than two, or all the same."""
    if len(values) < 2 or max(values) - min(values) < 1e-12:  # rounding errors are no spread
        return math.nan
    return float(stats.ttest_1samp(values, 0).pvalue)


def holm(p_values: list[float]) -> list[float]:
    """P values adjusted for their number (Holm, 1979); nan is not counted and stays nan."""
    order = sorted(
        (i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i]
    )
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def verdict(values: list[float], p: float, better: int) -> str:
    """The word for a test: "holds", "does not hold" (the other way round), "undecided", "too few
    sets", or a dash where there is no p value.
    """
    if math.isnan(p):
        return "-"
    if len(values) < FEWEST_SETS:
        return "too few sets"
    if p >= LEVEL:
        return "undecided"
    return "holds" if better * fmean(values) > 0 else "does not hold"


# ---- the tests -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """That a field is larger (`better` 1) or smaller (-1) for one method than for another."""

    text: str
    field: str
    first: str
    second: str
    better: int
    labels_only: bool = False  # of tasks whose answer is a label


PRIMARY = Claim("IA2 then SFT is more accurate than SFT", "accuracy", "ia2-sft", "sft", 1)
SECONDARY = (  # what the paper claims
    Claim("IA2 then SFT has a lower ECE than SFT", "ece", "ia2-sft", "sft", -1),
    Claim("IA2 then SFT is nearer to ICL inside than SFT (asim)", "asim", "ia2-sft", "sft", 1),
    Claim("IA2 then SFT is more accurate than ICL (labels)", "accuracy", "ia2-sft", "icl", 1, True),
    Claim("ICL has a lower ECE than SFT", "ece", "icl", "sft", -1),
    Claim("IA2 is more accurate than ICL's soft labels (labels)", "accuracy", "ia2", "kd", 1, True),
    Claim(
        "both losses at once are more accurate than SFT on ICL's answers",
        "accuracy",
        "ia2+sft",
        "sft-icl",
        1,
    ),
)


def planned(rows: list[dict]) -> list[dict]:
    """The rows that the plan speaks of: the paper's teacher, and training as it is by default."""
    kept = []
    for row in rows:
        own = result_rows.setting(row, "demos") == "own"
        chosen = dict(result_rows.options(row))
        as_planned = all(chosen.get(name, value) == value for name, value in PLAN_OPTIONS.items())
        if own and as_planned and set(chosen) <= set(PLAN_OPTIONS):
            kept.append(row)
    return kept


def is_former(row: dict) -> bool:
    """Whether a row was made by the former procedure, before the tests were named."""
    return row.get("procedure") is not None


@dataclass(frozen=True)
class Test:
    """A claim, the differences of each few-shot set at the planned rate, and its p values."""

    claim: Claim
    values: list[float]
    p: float
    adjusted: float
    verdict: str


def claimed(rows: list[dict], claim: Claim) -> dict[tuple, float]:
    """The differences that a claim is about, for each few-shot set."""
    if claim.labels_only:
        rows = [row for row in rows if row.get("labels")]
    return paired(rows, claim.field, claim.first, claim.second)


def secondary_tests(rows: list[dict]) -> list[Test]:
    """The paper's claims that the planned rows can be asked about, with Holm's correction."""
    at_plan = result_rows.at_rate(rows, PLAN_RATE)
    asked = []
    for claim in SECONDARY:
        values = list(claimed(at_plan, claim).values())
        if len(values) > 1:
            asked.append((claim, values))
    p_values = [p_value(values) for _, values in asked]
    tests = []
    for (claim, values), p, adjusted in zip(asked, p_values, holm(p_values)):
        word = "-" if is_former(rows[0]) else verdict(values, adjusted, claim.better)
        tests.append(Test(claim, values, p, adjusted, word))
    return tests


# ---- what has no sign to test --------------------------------------------------------------------


def equal_in_all(row: dict, other: dict) -> bool:
    """Whether two methods' rows of one test have the same scores to the last digit."""
    telling = ("nll", "ece_top1", "asim", "asim_layers")  # equal accuracies are no proof
    both = [name for name in ("accuracy", *telling) if row.get(name) is not None]
    if not set(both) & set(telling):
        return False
    return all(row[name] == other.get(name) for name in both)


def rank_correlations(rows: list[dict]) -> list[float]:
    """Spearman's rank correlation of asim and ECE over few-shot sets, within method, n and test."""
    trained = [
        row
        for row in rows
        if row.get("lr") and is_number(row.get("ece")) and is_number(row.get("asim"))
    ]
    values = []
    for same in result_rows.group(trained, (*SETTING, "eval_dataset", "method")).values():
        rho = metrics.rank_correlation([row["asim"] for row in same], [row["ece"] for row in same])
        if not math.isnan(rho):
            values.append(rho)
    return values
