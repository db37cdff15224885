"""The report's sections about differences: the tests that were planned, and all that is explored.

`lab/comparisons.py` has the statistics; here they become Markdown. All learning rates stand side by
side, but where a table says at which one it is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from lab import comparisons
from lab.cells import FIELDS, difference, number, p_text, rate_text
from lab.comparisons import PLAN_RATE, PRIMARY, claimed, paired
from lab.diagnostics import arm_name
from lab.rows import (
    SETTING,
    arms,
    at_rate,
    group,
    has_one_label,
    methods,
    partner,
    pick_by_dev,
    rates,
    setting,
)
from support.records import grid

# Scores that a preference for some labels costs nothing, or little, and their tables' words.
SEPARATION = {
    "label_auroc": (
        "## How well the labels are told apart: AUROC of labels",
        "The chance that a query of a label gives it more probability than a query of another one "
        "does. With two labels a preference for one of them, which costs accuracy, changes "
        "nothing here.",
    ),
    "accuracy_batch_calibrated": (
        "## Accuracy after batch calibration",
        "Each label's probabilities are divided by their mean over the test queries before the "
        "likeliest label is taken (Zhou et al., ICLR 2024). This takes off a part of a preference "
        "for one label. It needs queries, but not their labels.",
    ),
}
# Differences that are shown, first minus second, and in which fields. A method that is in none of
# them is compared with SFT and with IA2 then SFT.
ACCURACY = ("accuracy",)
ANSWERS = ("accuracy", *SEPARATION)
# Beside base, which seldom answers with a label of its own accord.
AMONG_LABELS = ("accuracy_among_labels", *SEPARATION)
PAIRS = {
    ("ia2-sft", "sft"): tuple(FIELDS),
    ("ia2-sft", "icl"): tuple(FIELDS),
    ("ia2-sft", "ia2"): ANSWERS,
    ("ia2", "icl"): ANSWERS,
    ("sft", "icl"): (*ANSWERS, "nll", "ece"),
    ("icl", "base"): AMONG_LABELS,
    ("sft", "base"): (*AMONG_LABELS, "asim", "asim_centred"),
    ("ia2", "base"): AMONG_LABELS,
    ("ia2-sft", "base"): AMONG_LABELS,
    ("steer", "base"): AMONG_LABELS,
    ("ia2-sft", "sft-ia2"): ACCURACY,
    ("ia2", "kd"): ACCURACY,
    ("ia2", "sft-icl"): ACCURACY,
    ("ia2+sft", "kd"): ACCURACY,
    ("ia2+sft", "sft-icl"): ACCURACY,
    ("ia2", "steer"): (*ANSWERS, "asim", "asim_centred"),
    ("steer", "icl"): ANSWERS,
}
ON_EACH_TEST = (("ia2-sft", "sft"), ("ia2-sft", "icl"))
TWO_LABELS = "two labels or more"  # among the training examples
ONE_LABEL = "one label: cannot be learned"


# ---- columns: the same rows at each rate ---------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """Some rows at one learning rate, or at picked ones."""

    name: str
    rows: list[dict]


def columns(rows: list[dict]) -> list[Column]:
    """A column for each rate and, where there are several, one for the rates picked by dev."""
    found = [Column(rate_text(lr), at_rate(rows, lr)) for lr in rates(rows)]
    if len(found) > 1:
        found.append(Column("picked by dev", pick_by_dev(rows)))
    return found


def covered(rows: Iterable[dict], pair: tuple[str, str]) -> set[tuple]:
    """The settings and tests on which both methods of a pair have rows."""
    by_method = {method: set() for method in pair}
    for row in rows:
        if row["method"] in by_method:
            place = tuple(setting(row, field) for field in (*SETTING, "eval_dataset"))
            by_method[row["method"]].add(place)
    return set.intersection(*by_method.values())


def whole_difference(column: list[dict], wanted: list[dict], field: str, pair) -> dict:
    """The differences in a column, or none if it lacks some setting or test of the wanted rows.

    So figures that stand side by side are means over the same n, tests and models.
    """
    if covered(column, pair) != covered(wanted, pair):
        return {}
    return paired(column, field, *pair)


# ---- the planned tests ---------------------------------------------------------------------------


def all_tests(rows: list[dict]) -> list[str]:
    """The primary test and the paper's claims; rows of the former procedure are kept apart."""
    parts = []
    for same in group(rows, ["procedure"]).values():
        wanted = comparisons.planned(same)
        parts += [*primary_test(wanted, same[0]), *secondary_tests(wanted), *separation(wanted)]
    return parts


def primary_test(rows: list[dict], any_row: dict) -> list[str]:
    """The one planned test, and what it is made of; `lab.hypotheses` gives its verdict."""
    title = "## The primary test: IA2 then SFT minus SFT, accuracy in points"
    former = comparisons.is_former(any_row)
    at_plan = paired(at_rate(rows, PLAN_RATE), "accuracy", "ia2-sft", "sft")
    if len(at_plan) < 2:
        return [
            title,
            "Not made: it needs rows of sft and ia2-sft on two few-shot sets or more, at "
            f"{rate_text(PLAN_RATE)} with rank 8, 50 epochs and the best adapter kept.",
        ]
    values = list(at_plan.values())
    p = comparisons.p_value(values)
    word = "the plan's verdict, on the rows of its own run, is that of `lab.hypotheses`"
    if former:
        word = "no verdict, since the test was named after these rows were made"
    above = sum(value > 0 for value in values)
    return [
        title,
        "Each few-shot set's difference, its tests, n, label styles and models averaged first: "
        "sets of the same texts are one set. Only the first line at "
        f"{rate_text(PLAN_RATE)} is the test.",
        grid(primary_lines(rows)),
        f"At {rate_text(PLAN_RATE)}: {difference(at_plan, 'accuracy')}, {above} of them above "
        f"zero, p = {p_text(p)}: {word}.",
    ]


def primary_lines(rows: list[dict]) -> list[list[str]]:
    """A line for all few-shot sets, then one for each part of them."""
    pair = (PRIMARY.first, PRIMARY.second)
    found = columns(rows)
    names = [column.name for column in found]
    lines = [["sets and tests", *names, *(["mean of the rates"] if len(names) > 1 else [])]]
    for part in parts_of(rows):
        wanted = [row for row in at_rate(rows, PLAN_RATE) if part.holds(row)]
        by_column = []
        for column in found:
            held = [row for row in column.rows if part.holds(row)]
            by_column.append(whole_difference(held, wanted, PRIMARY.field, pair))
        cells = [difference(each, PRIMARY.field) for each in by_column]
        if len(names) > 1:
            at_rates = by_column[:-1]  # the last is picked
            mean = comparisons.mean_of_rates(at_rates) if all(at_rates) else {}
            cells.append(difference(mean, PRIMARY.field))
        lines.append([part.name, *cells])
    return lines


@dataclass(frozen=True)
class Part:
    """Some of the rows, under a name."""

    name: str
    holds: Callable[[dict], bool]


def parts_of(rows: list[dict]) -> list[Part]:
    """All rows, and the parts that are neither all nor none."""
    parts = [
        Part("in domain", lambda row: row["eval_dataset"] == row["dataset"]),
        Part("out of domain", lambda row: row["eval_dataset"] != row["dataset"]),
        Part(TWO_LABELS, lambda row: row.get("labels") and not has_one_label(row)),
        Part(ONE_LABEL, has_one_label),
    ]
    for field in ("n", "labels", "model", "dataset"):
        values = dict.fromkeys(row[field] for row in rows if row.get(field) is not None)
        for value in sorted(values) if field == "n" else values:
            parts.append(Part(part_name(field, value), partial(has_value, field, value)))
    kept = [Part("all", lambda row: True)]
    for part in parts:
        if 0 < sum(bool(part.holds(row)) for row in rows) < len(rows):
            kept.append(part)
    return kept


def part_name(field: str, value) -> str:
    if field == "n":
        return f"n = {value}"
    return f"{value} as labels" if field == "labels" else str(value)


def has_value(field: str, value, row: dict) -> bool:
    return row.get(field) == value


def secondary_tests(rows: list[dict]) -> list[str]:
    """The paper's other claims, with Holm's correction, and what is only described."""
    tests = comparisons.secondary_tests(rows)
    found = columns(rows)
    lines = []
    for test in tests:
        cells = []
        for column in found:
            by_set = claimed(column.rows, test.claim)
            cells.append(difference(by_set, test.claim.field))
        claim = test.claim
        text = f"{claim.text}: {claim.first} minus {claim.second}"
        lines.append([text, *cells, p_text(test.p), p_text(test.adjusted), test.verdict])
    lines += [correlation_line(found)] if tests else []
    if not lines:
        return []
    head = ["claim of the paper", *(column.name for column in found)]
    head += [f"p at {rate_text(PLAN_RATE)}", "p by Holm", "verdict"]
    return [
        "## Secondary tests: the paper's other claims",
        f"Tested at {rate_text(PLAN_RATE)}, corrected for {len(tests)} tests by Holm's method; "
        "the other columns stand beside them.",
        grid([head, *lines]),
    ]


def correlation_line(found: list[Column]) -> list[str]:
    """How asim and ECE go together: described, not tested."""
    cells = []
    for column in found:
        values = comparisons.rank_correlations(column.rows)
        text = f"{number(fmean(values), 1, 2, '+')}, mean of {len(values)}" if values else "-"
        cells.append(text)
    text = "the nearer to ICL inside, the lower the ECE: rank correlation within method, n and test"
    return [text, *cells, "-", "-", "not tested"]


def separation(rows: list[dict]) -> list[str]:
    """How well labels are told apart: a table for each measure of it."""
    parts = []
    for field, (title, text) in SEPARATION.items():
        lines = separation_lines(rows, field)
        if len(lines) > 1:
            rate = f"At {rate_text(PLAN_RATE)}; exploratory."
            parts += [title, f"{text} {rate}", grid(lines)]
    return parts


def separation_lines(rows: list[dict], wanted: str) -> list[list[str]]:
    """A head, and a line for each pair: on all few-shot sets, on those of two labels, of one."""
    at_plan = at_rate(rows, PLAN_RATE)
    parts = {}
    for part in parts_of(at_plan):
        if part.name in ("all", TWO_LABELS, ONE_LABEL):
            parts[part.name] = [row for row in at_plan if part.holds(row)]
    lines = [["difference", *parts]]
    for pair, fields in shown_pairs(at_plan).items():
        if wanted not in fields:
            continue
        found = [difference(paired(held, wanted, *pair), wanted) for held in parts.values()]
        if set(found) != {"-"}:
            lines.append([" minus ".join(pair), *found])
    return lines


# ---- all that is explored ------------------------------------------------------------------------


def all_differences(rows: list[dict]) -> list[str]:
    """A table of differences for each setting, whose n stand side by side."""
    parts = []
    fields = [field for field in SETTING if field != "n"]
    for same in group(rows, fields).values():
        lines = difference_lines(same)
        if lines:
            row = same[0]
            demos = setting(row, "demos")
            taught = "" if demos == "own" else f", the teacher's demos {demos}"
            kind = f", {row['labels']}" if row.get("labels") else ""
            head = ["difference", "in", "tests", "n", *(each.name for each in columns(same))]
            parts.append(f"### {row['dataset']}, {row['model']}{kind}{taught}")
            parts.append(grid([head, *lines]))
    if not parts:
        return []
    return [
        "## Differences",
        "Each few-shot set's difference, its tests (and n, where all are taken) averaged first, "
        "then the mean over sets. Exploratory: among so many intervals some miss zero by chance.",
        *parts,
    ]


def shown_pairs(rows: list[dict]) -> dict[tuple[str, str], tuple[str, ...]]:
    """{pair of methods: fields} for the pairs that can be compared on some rows."""
    there = methods(rows)
    pairs = {pair: fields for pair, fields in PAIRS.items() if set(pair) <= set(there)}
    named = {method for pair in PAIRS for method in pair}
    for method in there:
        if method not in named:
            for other in ("sft", "ia2-sft"):
                if other in there:
                    pairs[method, other] = ANSWERS
    return pairs


def difference_lines(rows: list[dict]) -> list[list[str]]:
    """Lines of cells: the pair, the field, the tests, n, and the difference in each column."""
    lines = []
    found = arms(rows)
    for pair, fields in shown_pairs(rows).items():
        for arm in found:
            other = partner(arm, pair[1], found) if arm.method == pair[0] else None
            if other is None:
                continue
            both = []
            for column in columns(rows):
                held = [row for row in column.rows if arm.holds(row) or other.holds(row)]
                both.append(Column(column.name, held))
            name = f"{arm_name(arm, found)} minus {pair[1]}"
            for field in fields:
                lines += field_lines(name, field, both, pair)
    return lines


def field_lines(name: str, field: str, found: list[Column], pair) -> list[list[str]]:
    """The lines of one difference: each n, and all n together; of some pairs each test too."""
    rows = [row for column in found for row in column.rows]
    tests = ["all"]
    each_test = list(dict.fromkeys(row["eval_dataset"] for row in rows))
    if field == "accuracy" and pair in ON_EACH_TEST and len(each_test) > 1:
        tests += each_test
    sizes = sorted({row["n"] for row in rows})
    lines = []
    for test in tests:
        for n in [*sizes, "all"] if len(sizes) > 1 else sizes:
            wanted = part_of(rows, test, n)
            cells = []
            for column in found:
                part = part_of(column.rows, test, n)
                cells.append(difference(whole_difference(part, wanted, field, pair), field))
            if set(cells) != {"-"}:
                lines.append([name, FIELDS[field][0], test, str(n), *cells])
    return lines


def part_of(rows: list[dict], test: str, n: int | str) -> list[dict]:
    """The rows of one test and n; "all" takes all of them."""
    kept = []
    for row in rows:
        if test in ("all", row["eval_dataset"]) and n in ("all", row["n"]):
            kept.append(row)
    return kept
