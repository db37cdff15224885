"""What stands behind the scores: what sets hold, what training kept, what updates share."""

import math
from collections.abc import Iterable
from statistics import fmean

from lab import comparisons
from lab.cells import interval, label_counts, listed, number, rate_text
from lab.rows import (
    SETTING,
    TEST,
    Arm,
    arms,
    at_rate,
    group,
    has_kept_nothing,
    is_number,
    mean,
    methods,
    partner,
    rates,
    setting,
    varied_options,
)
from support.records import grid

COLLAPSED = 0.95  # share of the answers from which on a method gives one label
LITTLE = 10  # steps; a stage that kept fewer is counted
BATCH = 4  # examples a step, `ia2.Recipe.batch_size`
EPOCHS = {"sft-100": 2}  # times --epochs, of methods of `lab.variants` that train longer
GOLD_STAGES = ("sft", "steered-sft", "sft_balanced", "sft_smooth", "sft_labels")  # on true answers


def by_number(rows: Iterable[dict]) -> dict[int, list[dict]]:
    """{number of the few-shot set: rows}, in the order of the numbers."""
    groups = {}
    for row in sorted(rows, key=lambda row: row["set"]):
        groups.setdefault(row["set"], []).append(row)
    return groups


def test_name(row: dict) -> str:
    """The test's name; whether it is of another task than the training."""
    return row["eval_dataset"] + (
        "" if row["eval_dataset"] == row["dataset"] else " (out of domain)"
    )


def arm_name(arm: Arm, among: list[Arm]) -> str:
    """`ia2-sft`, or `ia2-sft, rank 32` where arms differ in rank."""
    chosen = dict(arm.options)
    varied = [field for field in varied_options(among) if field in chosen]
    return ", ".join([arm.method, *(f"{field} {chosen[field]}" for field in varied)])


# ---- what the sets hold --------------------------------------------------------------------------


def set_by_set(rows: list[dict]) -> list[str]:
    """What each few-shot set of one setting holds, and each method's accuracy on it."""
    parts = []
    for same in group(rows, TEST).values():
        for lr in rates(same) or [None]:
            at_text = f", every method at {rate_text(lr)}" if lr else ""
            parts.append(f"{test_name(same[0])}{at_text}:")
            parts.append(grid(set_lines(at_rate(same, lr))))
    return [
        "### Set by set",
        "Accuracy % on each few-shot set; in parentheses the share of the most frequent answer "
        f"among the labels, where it is {COLLAPSED:.0%} or more.",
        *parts,
    ]


def set_lines(rows: list[dict]) -> list[list[str]]:
    """A line a few-shot set: its labels, its teacher, and each method's accuracy."""
    shown = arms(rows)
    head = ["set", "training labels", "dev labels", "teacher right %"]
    lines = [[*head, *(arm_name(arm, shown) for arm in shown)]]
    for set_number, same in by_number(rows).items():
        cells = [
            str(set_number),
            label_counts(same[0].get("train_labels")),
            label_counts(same[0].get("dev_labels")),
            number(mean(same, "teacher_right"), 100, 0),
        ]
        for arm in shown:
            cells.append(set_cell([row for row in same if arm.holds(row)]))
        lines.append(cells)
    return lines


def set_cell(rows: list[dict]) -> str:
    """`50 (98% one label)` of a method's row on one set, a dash where there is none."""
    text = number(mean(rows, "accuracy"), 100, 0)
    share = mean(rows, "largest_share")
    if is_number(share) and round(share, 6) >= COLLAPSED:  # older rows hold float32 numbers
        text += f" ({share:.0%} one label)"
    return text


# ---- what training kept --------------------------------------------------------------------------


def steps_kept(rows: list[dict]) -> list[str]:
    """The steps that each stage of training kept, set by set, and the methods that are undone."""
    trained = [row for row in rows if row.get("stages")]
    if not trained:
        return []
    shown = arms(trained)
    head = ["method", "rate", "stage", "kept step, set by set", "steps run"]
    lines = [[*head, "kept none", f"kept under {LITTLE}", "ran to its cap"]]
    for arm in shown:
        held = [row for row in trained if arm.holds(row)]
        for lr in rates(held):
            one_test = list(by_number(at_rate(held, lr)).values())
            lines += stage_lines(arm_name(arm, shown), [rows[0] for rows in one_test])
    return ["### Steps kept", grid(lines), *undone(rows)]


def stage_lines(name: str, rows: list[dict]) -> list[list[str]]:
    """A line for each stage of a method, of one row a few-shot set."""
    lines = []
    for i, stage in enumerate(rows[0]["stages"]):
        kept = [row["stages"][i]["kept_step"] for row in rows]
        run = [row["stages"][i]["steps"] for row in rows]
        at_cap = [steps >= cap(row, i) for steps, row in zip(run, rows)]
        counts = [kept.count(0), sum(step < LITTLE for step in kept), sum(at_cap)]
        lines.append(
            [
                name,
                rate_text(rows[0]["lr"]),
                stage["name"],
                listed(kept),
                listed(run),
                *(f"{count} of {len(rows)}" for count in counts),
            ]
        )
    return lines


def cap(row: dict, i: int) -> float:
    """The most steps that stage `i` of this row may take."""
    if not is_number(row.get("epochs")):
        return math.inf
    stages = row["stages"]
    epochs = row["epochs"] * EPOCHS.get(row["method"], 1)
    if row.get("primer_epochs") and i < len(stages) - 1:
        epochs = row["primer_epochs"]
    examples = row["n"]
    uses_gold = stages[i]["name"] in GOLD_STAGES and row.get("sft_on") != "icl"
    if row.get("queries") and not uses_gold:
        examples = row["queries"]
    return epochs * math.ceil(examples / BATCH)


def undone(rows: list[dict]) -> list[str]:
    """Sentences about stages that kept nothing, and about methods that equal another one."""
    sentences = []
    for lr in rates(rows):
        at = at_rate(rows, lr)
        for arm in arms(row for row in at if row.get("stages")):
            name = f"{arm_name(arm, arms(at))} at {rate_text(lr)}"
            numbers = by_number(row for row in at if arm.holds(row))
            empty = [i for i, same in numbers.items() if has_kept_nothing(same[0])]
            if empty:
                sentences.append(
                    f"- {name}: a stage kept nothing in {len(empty)} of {len(numbers)} sets "
                    f"({listed(empty)})."
                )
            for other, equal in equals(arm, at).items():
                sentences.append(
                    f"- {name} is {other}, to the last digit of all scores, in {len(equal)} of "
                    f"{len(numbers)} sets ({listed(equal)})."
                )
    return ["\n".join(sentences)] if sentences else []


def equals(arm: Arm, rows: list[dict]) -> dict[str, list[int]]:
    """{method: numbers of the sets on which it has the scores of `arm` on every test}.

    Methods that stand before it in the tables are looked at, so that a pair is named once.
    """
    order = methods(rows)
    found = {}
    for set_number, same in by_number(rows).items():
        own = {row["eval_dataset"]: row for row in same if arm.holds(row)}
        for method in order[: order.index(arm.method)]:
            others = {row["eval_dataset"]: row for row in same if row["method"] == method}
            tests = set(own) & set(others)
            equal = [comparisons.equal_in_all(own[test], others[test]) for test in tests]
            if tests and all(equal):
                found.setdefault(method, []).append(set_number)
    return found


# ---- the teacher's demos -------------------------------------------------------------------------


def controls(rows: list[dict]) -> list[str]:
    """Accuracy with each kind of the teacher's demos side by side, at the rates that all have."""
    parts = []
    fields = [field for field in (*SETTING, *TEST) if field != "demos"]
    for same in group(rows, fields).values():
        kinds = {kind: held for (kind,), held in group(same, ["demos"]).items()}
        if len(kinds) > 1 and "own" in kinds:
            parts += control_tables(kinds)
    if not parts:
        return []
    return [
        "## The teacher's demos",
        "Accuracy %, and how it differs from that with the teacher's own demos, for each few-shot "
        "set and on average.",
        *parts,
    ]


def control_tables(kinds: dict[str, list[dict]]) -> list[str]:
    """A table for each rate that all kinds of demos have, on one test."""
    shared = set.intersection(*(set(rates(held)) for held in kinds.values()))
    first = kinds["own"][0]
    parts = []
    for lr in sorted(shared):
        lines = [["demos", "method", "accuracy %", "as ICL %", "minus own", "set by set"]]
        own = at_rate(kinds["own"], lr)
        for kind, held in kinds.items():
            at = at_rate(held, lr)
            shown = arms(at)
            for arm in shown:
                with_kind = [row for row in at if arm.holds(row)]
                with_own = [row for row in own if arm.holds(row)]
                lines.append(control_line(kind, arm_name(arm, shown), with_kind, with_own))
        title = f"{first['dataset']} -> {test_name(first)}, n = {first['n']}, {first['model']}"
        parts += [f"{title}, at {rate_text(lr)}:", grid(lines)]
    return parts


def control_line(kind: str, name: str, rows: list[dict], own: list[dict]) -> list[str]:
    """One arm with one kind of demos, and its difference from the same with its own."""
    accuracy = interval([row["accuracy"] for row in rows], 100, 1)
    agreement = number(mean(rows, "agreement"), 100, 0)
    before = {row["set"]: row["accuracy"] for row in own}
    gaps = []
    for row in sorted(rows, key=lambda row: row["set"]):
        if kind != "own" and row["set"] in before:
            gaps.append(row["accuracy"] - before[row["set"]])
    each = listed(number(gap, 100, 1, "+") for gap in gaps)
    return [kind, name, accuracy, agreement, interval(gaps, 100, 1, "+"), each or "-"]


# ---- what updates share --------------------------------------------------------------------------


def shared_subspace(rows: list[dict]) -> list[str]:
    """How much of IA2's subspace the updates of IA2 then SFT and of SFT hold, by setting and rate.

    Sets whose SFT stage kept nothing are left out: there the update *is* IA2's.
    """
    head = ["training", "rate", "sets", "IA2 then SFT with IA2", "with another set's IA2"]
    lines = [[*head, "SFT with IA2", "SFT with another set's IA2", "by chance"]]
    for same in group(rows, SETTING).values():
        for lr in rates(same):
            at = in_domain(at_rate(same, lr))
            for arm in arms(at):
                if arm.method == "ia2-sft":
                    lines += subspace_lines(arm, at)
    if len(lines) == 1:
        return []
    return [
        "## What updates share",
        "Share of the subspace of IA2's update, mean over modules and over the sets whose SFT "
        "stage kept a step. IA2 then SFT starts from IA2's update, so its share is high by "
        "construction; the paper has 39% for it and nearly nothing for SFT.",
        grid(lines),
    ]


def in_domain(rows: Iterable[dict]) -> list[dict]:
    return [row for row in rows if row["eval_dataset"] == row["dataset"]]


def subspace_lines(arm: Arm, rows: list[dict]) -> list[list[str]]:
    """The line of one arm of IA2 then SFT; none where its rows do not tell of overlaps."""
    own = overlaps(rows, arm)
    if not any("ia2" in each for each in own):
        return []
    ia2 = overlaps(rows, partner(arm, "ia2", arms(rows)))
    row = rows[0]
    name = f"{row['dataset']}, n = {row['n']}, {row['labels']}"
    if setting(row, "demos") != "own":
        name += f", demos {row['demos']}"
    shown = arms(each for each in rows if each["method"] == "ia2-sft")
    name += arm_name(arm, shown).removeprefix("ia2-sft")
    return [
        [
            name,
            rate_text(rates(rows)[0]),
            str(len(own)),
            percent(own, "ia2"),
            percent(own, "ia2, other set"),
            percent(ia2, "sft"),
            percent(ia2, "sft, other set"),
            percent(own, "chance"),
        ]
    ]


def overlaps(rows: list[dict], arm: Arm | None) -> list[dict]:
    """What the updates of an arm share with others, a dict a few-shot set."""
    if arm is None:
        return []
    kept = [row for row in rows if arm.holds(row) and not has_kept_nothing(row)]
    return [row["overlap"] for row in kept if row.get("overlap")]


def percent(shares: list[dict], name: str) -> str:
    found = [share[name] for share in shares if is_number(share.get(name))]
    return f"{fmean(found):.0%}" if found else "-"
