"""How numbers of a report look: the text of one table cell each."""

import math
from collections import Counter
from collections.abc import Iterable

import metrics
from lab.rows import is_number

# How the difference of a field is written: its name, factor, digits.
FIELDS = {
    "accuracy": ("accuracy, points", 100, 1),
    "accuracy_among_labels": ("among labels, points", 100, 1),
    "accuracy_batch_calibrated": ("batch-calibrated, points", 100, 1),
    "label_auroc": ("AUROC of labels", 1, 3),
    "nll": ("NLL", 1, 3),
    "ece": ("ECE", 1, 3),
    "gap": ("gap", 1, 3),
    "asim": ("asim", 1, 3),
    "asim_centred": ("asim centred", 1, 3),
    "forgets": ("forgets", 1, 3),
}


def rate_text(lr: float | None) -> str:
    """`3e-4` of 0.0003, a dash for None."""
    if lr is None:
        return "-"
    mantissa, _, exponent = f"{lr:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def number(value, factor: float = 1, digits: int = 1, sign: str = "") -> str:
    """A number, or a dash where there is none."""
    return f"{factor * value:{sign}.{digits}f}" if is_number(value) else "-"


def interval(values: Iterable, factor: float = 1, digits: int = 3, sign: str = "") -> str:
    """`81.2 [78.0, 84.4]` of several values, `81.2` of one, a dash of none."""
    values = [factor * value for value in values if is_number(value)]
    if not values:
        return "-"
    found = metrics.t_interval(values)
    text = f"{found.mean:{sign}.{digits}f}"
    if math.isnan(found.low):
        return text
    return f"{text} [{found.low:{sign}.{digits}f}, {found.high:{sign}.{digits}f}]"


def difference(by_set: dict, field: str) -> str:
    """`+10.2 [+1.5, +18.8], 15 sets` of {few-shot set: difference}."""
    if not by_set:
        return "-"
    _, factor, digits = FIELDS[field]
    sets = "1 set" if len(by_set) == 1 else f"{len(by_set)} sets"
    return f"{interval(by_set.values(), factor, digits, '+')}, {sets}"


def label_counts(labels: list[str] | None) -> str:
    """`3 x 0, 1 x 1` of 0, 1, 0, 0."""
    counts = Counter(labels or [])
    return ", ".join(f"{counts[label]} x {label}" for label in sorted(counts)) or "-"


def listed(values: Iterable) -> str:
    return ", ".join(map(str, values))


def p_text(p: float) -> str:
    if math.isnan(p):
        return "-"
    return "below .0001" if p < 1e-4 else f"{p:.4f}".removeprefix("0")
