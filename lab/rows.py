"""Rows of results files: which belong together, which are compared, and which rates are picked.

A row tells what one method did on one test after training on one few-shot set.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

import numpy as np

import metrics
from support.cli import UserError

MAIN_METHODS = ("base", "icl", "sft", "ia2", "ia2-sft")  # tables start with them, in this order

# What the rows of a table share; rows that differ in any of it are never averaged.
SETTING = (
    "procedure",
    "model",
    "model_hash",
    "dtype",
    "dataset",
    "source",
    "pool_data",
    "prompt",
    "labels",
    "balanced",
    "max_tokens",
    "seed",
    "demos",
    "n",
    "versions",
)
TEST = ("eval_dataset", "eval_source", "test")
DEFAULTS = {"demos": "own"}  # of fields that rows of ia2.py lack

# What is no setting: which few-shot set it was, where it was run, and what came out. All other
# fields say how a method was trained, so that a new option of training is never averaged over.
FEW_SHOT_SET = ("set", "train_data", "dev_data", "train_labels", "dev_labels", "teacher_right")
ORIGIN = ("run", "command", "commit", "machine", "threads", "test_data")
SCORES = (
    "accuracy",
    "ece_top1",
    "accuracy_among_labels",
    "accuracy_batch_calibrated",
    "nll",
    "brier",
    "gap",
    "ece",
    "ece_floor",
    "ece_floor_sd",
    "ece_equal_mass",
    "auroc",
    "label_auroc",
    "label_mass",
    "largest_share",
    "outcomes",
    "asim",
    "asim_layers",
    "asim_centred",
    "agreement",
    "forgets",
)
TRAINING = (
    "dev_gold_loss",
    "dev_loss",
    "joint_beta",
    "stages",
    "steps",
    "seconds",
    "peak_memory_gb",
    "overlap",
)
NO_OPTION = {*SETTING, *TEST, *FEW_SHOT_SET, *ORIGIN, *SCORES, *TRAINING, "method", "lr"}
REQUIRED = ("model", "dataset", "n", "set", "method", "eval_dataset", "accuracy")


# ---- one row -------------------------------------------------------------------------------------


def setting(row: dict, field: str) -> str:
    """A field's value as text; a field that a row lacks has its default."""
    return str(row.get(field, DEFAULTS.get(field)))


def is_number(value) -> bool:
    """Whether a score is there and finite."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def options(row: dict) -> tuple[tuple[str, str], ...]:
    """How a method was trained beyond its rate: rank, epochs, and the options of a sweep."""
    pairs = []
    for field, value in row.items():
        if field not in NO_OPTION and value is not None and not isinstance(value, (list, dict)):
            pairs.append((field, str(value)))
    return tuple(sorted(pairs))


# Scores that came later than some rows, and that their outcomes are enough for.
LATER_SCORES = {
    "label_auroc": metrics.label_auroc,
    "accuracy_batch_calibrated": metrics.batch_calibrated_accuracy,
}


def with_later_scores(row: dict) -> dict:
    """The row with the scores that were not measured yet when it was made."""
    missing = [field for field in LATER_SCORES if field not in row]
    if not missing or not row.get("labels") or not row.get("outcomes"):
        return row
    labels = np.array([outcome[0] for outcome in row["outcomes"]])
    probabilities = np.array([outcome[-1] for outcome in row["outcomes"]])
    return {**row, **{field: LATER_SCORES[field](probabilities, labels) for field in missing}}


def has_one_label(row: dict) -> bool:
    """Whether the training examples have one label only, so that the task cannot be learned."""
    return len(set(row.get("train_labels") or [])) == 1


def has_kept_nothing(row: dict) -> bool:
    """Whether some stage of training kept the adapter that it began with."""
    return any(stage["kept_step"] == 0 for stage in row.get("stages") or [])


def independent_set(row: dict) -> tuple[str, ...]:
    """What tells independent few-shot sets apart: their texts, and which of the draws it was.

    Sets of another n, other labels or another model are not independent of each other: they hold
    the same texts, and n = 2 is the start of n = 4.
    """
    texts = row["dataset"]
    source = row.get("source") or ""
    if source.startswith("stand-in "):  # of another task, which may have rows of its own
        texts, _, source = source.removeprefix("stand-in ").partition(", ")
    return texts, source, setting(row, "balanced"), setting(row, "seed"), str(row["set"])


# ---- many rows -----------------------------------------------------------------------------------


def group(rows: Iterable[dict], fields: Iterable[str]) -> dict[tuple[str, ...], list[dict]]:
    """{values of the fields: rows}, in the order of the rows."""
    fields = tuple(fields)
    groups = {}
    for row in rows:
        groups.setdefault(tuple(setting(row, field) for field in fields), []).append(row)
    return groups


def apart_from(row: dict, others: Iterable[dict], fields: Iterable[str]) -> list[str]:
    """What tells a row apart from others of the same name: as few of the fields as do."""
    words = []
    others = list(others)
    for field in fields:
        alike = [other for other in others if setting(other, field) == setting(row, field)]
        if len(alike) < len(others) and row.get(field) is not None:
            words.append(f"{field} {row[field]}")
        others = alike
    return words


def check_rows(rows: list[dict]) -> None:
    """Raise UserError for rows that cannot be averaged over few-shot sets.

    They lack a field, or two of them have one set number and are not of one few-shot set, or one
    method was tested twice in one way.
    """
    for row in rows:
        check_fields(row)
    for same in group(rows, (*SETTING, "set")).values():
        for field, name in (("train_data", "training"), ("dev_data", "dev")):
            found = sorted({row[field] for row in same if row.get(field)})
            if len(found) > 1:
                raise UserError(
                    f"{describe(same[0])} has rows with other {name} examples under one number "
                    f"({field} {' and '.join(found)}), so they are not one few-shot set; keep "
                    "the rows of one of them"
                )
    check_repeats(rows)


def check_fields(row: dict) -> None:
    """Raise UserError for a row that was trimmed, or that an earlier version wrote."""
    name = row.get("run", "the file")
    for field in REQUIRED:
        if row.get(field) is None:
            raise UserError(
                f"a row of {name} lacks `{field}`; give a file that ia2.py or lab.sweep wrote, or "
                "remove that row"
            )
    for stage in row.get("stages") or []:
        if not {"name", "steps", "kept_step"} <= set(stage):
            raise UserError(
                f"a row of {name} has stages without `kept_step`, as an earlier version wrote "
                "them; remove such rows, or make them again"
            )


def check_repeats(rows: list[dict]) -> None:
    """Raise UserError if a method has two rows of one set, setting, rate and test."""
    seen = set()
    for row in rows:
        place = tuple(setting(row, field) for field in (*SETTING, *TEST, "set", "method", "lr"))
        if (place, options(row)) in seen:
            raise UserError(
                f"{describe(row)} has two rows of {row['method']} on {row['eval_dataset']} with "
                "the same settings; keep one of them"
            )
        seen.add((place, options(row)))


def describe(row: dict) -> str:
    return f"few-shot set {row['set']} of {row['dataset']}, n = {row['n']}, {row['model']},"


def methods(rows: Iterable[dict]) -> list[str]:
    """The methods of some rows: the main ones first, the others in the order of the rows."""
    found = dict.fromkeys(row["method"] for row in rows)
    first = [method for method in MAIN_METHODS if method in found]
    return [*first, *(method for method in found if method not in first)]


def sets_of(rows: Iterable[dict]) -> set:
    return {row["set"] for row in rows}


# ---- arms: a method and how it was trained -------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """A method and its options; its rows differ in rate, few-shot set and test alone."""

    method: str
    options: tuple[tuple[str, str], ...] = ()

    def holds(self, row: dict) -> bool:
        return row["method"] == self.method and options(row) == self.options


def arms(rows: Iterable[dict]) -> list[Arm]:
    rows = list(rows)
    order = methods(rows)
    found = dict.fromkeys(Arm(row["method"], options(row)) for row in rows)
    return sorted(found, key=lambda arm: (order.index(arm.method), arm.options))


def partner(arm: Arm, method: str, candidates: list[Arm]) -> Arm | None:
    """The arm of another method that was trained like this one, as far as its options go.

    All its options are among those of `arm`; of several the one that shares most. So rank 32 is
    compared with rank 32, and an option that only one method has stands in no one's way.
    """
    fitting = []
    for other in candidates:
        if other.method == method and set(other.options) <= set(arm.options):
            fitting.append(other)
    return max(fitting, key=lambda other: len(other.options), default=None)


def varied_options(found: list[Arm]) -> list[str]:
    """The options in which trained arms differ."""
    trained = [dict(arm.options) for arm in found if arm.options]
    fields = dict.fromkeys(field for each in trained for field in each)
    return [field for field in fields if len({each.get(field) for each in trained}) > 1]


# ---- rates ---------------------------------------------------------------------------------------


def rates(rows: Iterable[dict]) -> list[float]:
    return sorted({row["lr"] for row in rows if row.get("lr")})


def at_rate(rows: Iterable[dict], lr: float) -> list[dict]:
    """The rows at one learning rate, and those that have none."""
    return [row for row in rows if row.get("lr") in (None, lr)]


def whole_rates(rows: list[dict]) -> list[list[dict]]:
    """The rows of each rate that has all the few-shot sets: means over other sets would differ by
    the sets. None may have.
    """
    every = sets_of(rows)
    return [same for same in group(rows, ["lr"]).values() if sets_of(same) == every]


def pick_by_dev(rows: list[dict]) -> list[dict]:
    """Of each arm the rows at the rate with the lowest cross-entropy of the dev examples' true
    answers, averaged over few-shot sets. One yardstick for all methods, and no test figure.
    """
    return pick(rows, SETTING, "dev_gold_loss", -1)


def pick_by_test(rows: list[dict]) -> list[dict]:
    """Of each arm and test the rows at the rate with the best mean *test* accuracy.

    This is the authors' rule. The figures that it gives are the largest of several means, so they
    are too good; here they only stand beside the paper's, which were picked in the same way.
    """
    return pick(rows, (*SETTING, *TEST), "accuracy", 1)


def pick(rows: list[dict], fields: Iterable[str], score: str, better: int) -> list[dict]:
    """Within rows that share the fields, of each arm the rate with the best mean of a score.

    `better` is 1 for the highest and -1 for the lowest. Only rates with all of an arm's few-shot
    sets are compared. An arm without such a rate, or of several rates that lack the score, is left
    out; base and ICL, which have no rate, stay.
    """
    picked = []
    for same in group(rows, fields).values():
        for arm in arms(same):
            candidates = whole_rates([row for row in same if arm.holds(row)])
            if not candidates:
                continue
            best = max(candidates, key=lambda each: better * mean(each, score, -better * math.inf))
            if len(candidates) == 1 or is_number(mean(best, score)):
                picked += best
    return picked


def mean(rows: Iterable[dict], field: str, missing: float = math.nan) -> float:
    """The mean of a score over the rows that have it; `missing` if none has."""
    values = [row[field] for row in rows if is_number(row.get(field))]
    return fmean(values) if values else missing
