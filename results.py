"""The results file, one JSON object a line, and the tables that are made of it."""
import csv
import io
import json
import math
import os
import statistics
from pathlib import Path

from filelock import FileLock

import metrics
from fetch import UserError

FIELDS = ("method", "model", "dataset", "eval_dataset", "n", "set", "lr", "accuracy", "run")


def key(row):
    """What makes a result the same result: the run, and what it was tested on."""
    return row["run"], row["eval_dataset"], row["test_data"], row["bins"]


def read(path):
    """The rows of a results file; a half line at its end, left by a kill, is passed over. [] where there is no file.

    Raises UserError for any other line that is no result.
    """
    path = Path(path)
    if not path.exists():
        return []
    *lines, rest = path.read_bytes().split(b"\n")  # whole lines end in a newline; the rest is empty or half a line
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not set(FIELDS) <= set(row):
                raise ValueError("it lacks fields of a result")
        except ValueError as error:
            raise UserError(f"{path}, line {number}: this is not a result ({error}); remove the line, or use "
                            "another --out") from None
        rows.append(row)
    return rows


def append(path, rows):
    """Add rows that are not there yet, in one write under a lock, so that several processes can share the file.

    A half line at the end is removed first. If the disk is full, the file is left as it was and UserError raised.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        known = {key(row) for row in read(path)}
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows if key(row) not in known).encode()
        with open(path, "ab") as file:
            size = path.read_bytes().rfind(b"\n") + 1
            file.truncate(size)
            try:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                os.ftruncate(file.fileno(), size)
                raise UserError(f"cannot write to {path} ({error.strerror}); make room and run the same command again: "
                                "what is finished is kept") from None


# ---- tables ---------------------------------------------------------------------------------------------------------


def pick_rates(rows):
    """Rows of the learning rate with the lowest dev loss, per model, task, n and method; never by test figures.

    Dev losses are averaged over the few-shot sets; rates that lack some of the sets are not picked.
    """
    groups = {}
    for row in rows:
        groups.setdefault(cell(row) + (row["method"],), {}).setdefault(row["lr"], []).append(row)
    picked = []
    for rates in groups.values():
        losses = {rate: {row["set"]: row["dev_loss"] for row in found} for rate, found in rates.items()}
        most = max(map(len, losses.values()))
        best = min((rate for rate in rates if len(losses[rate]) == most),
                   key=lambda rate: statistics.fmean(losses[rate].values()) if rate is not None else 0)
        picked += rates[best]
    return picked


def cell(row):
    """What one table is about: model, how it is prompted, task, source and n."""
    return row["model"], row["dataset"], row["source"], row["labels"], row["balanced"], row["n"]


def spread(values, digits, scale=1):
    """`81.2 ± 3.4` of several values, `81.2` of one, a dash of none."""
    values = [scale * value for value in values if value is not None]
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def table(rows, methods):
    """One cell's results as lists of texts: a head, then a line a method; the best of each column in bold."""
    dataset = rows[0]["dataset"]
    tests = list(dict.fromkeys(row["eval_dataset"] for row in rows))
    columns = [(test, figure) for test in tests for figure in ("accuracy", "ece", "asim")]
    names = {"accuracy": "acc %", "ece": "ECE", "asim": "asim"}
    head = ["method", "lr", *(f"{test}{'' if test == dataset else '*'} {names[figure]}" for test, figure in columns)]
    lines, means = [], []
    for method in (method for method in methods if any(row["method"] == method for row in rows)):
        chosen = [row for row in rows if row["method"] == method]
        rate = chosen[0]["lr"]
        line, mean = [method, f"{rate:g}" if rate else "-"], []
        for test, figure in columns:
            values = [row[figure] for row in chosen if row["eval_dataset"] == test and row[figure] is not None]
            line.append(spread(values, 1 if figure == "accuracy" else 3, 100 if figure == "accuracy" else 1))
            mean.append(statistics.fmean(values) if values else None)
        lines.append(line)
        means.append(mean)
    for place, (_, figure) in enumerate(columns):
        values = [mean[place] for mean in means if mean[place] is not None]
        if figure == "asim" or len(values) < 2:
            continue
        best = max(values) if figure == "accuracy" else min(values)
        for line, mean in zip(lines, means):
            if mean[place] == best:
                line[place + 2] = f"**{line[place + 2]}**"
    return [head, *lines]


def paired(rows, first="ia2-sft", second="sft", figure="accuracy"):
    """Differences first - second of a figure, paired by everything but the method (and the learning rate picked)."""
    by_method = {method: {cell(row) + (row["set"], row["eval_dataset"]): row[figure] for row in rows
                          if row["method"] == method and row[figure] is not None} for method in (first, second)}
    return [by_method[first][place] - by_method[second][place] for place in by_method[first] if place in by_method[second]]


def markdown(lines):
    """A table as Markdown whose columns line up in a terminal too."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    text = ["| " + " | ".join(value.ljust(width) for value, width in zip(line, widths)) + " |" for line in lines]
    return "\n".join([text[0], "| " + " | ".join("-" * width for width in widths) + " |", *text[1:]])


def report(rows, methods):
    """All tables of some rows as one Markdown text. `methods` gives the order of the lines."""
    if not rows:
        return "no results yet"
    parts, rows = [], pick_rates(rows)
    for place in dict.fromkeys(map(cell, rows)):
        found = [row for row in rows if cell(row) == place]
        model, dataset, source, labels, balanced, n = place
        sets, tests = len({row["set"] for row in found}), sorted({row["test"] for row in found})
        kind = f"{labels} labels, {'balanced' if balanced else 'random'} sets" if labels else "free text"
        parts.append(f"### {dataset}, n = {n} ({model})\n\n{sets} few-shot set{'s' if sets > 1 else ''}, "
                     f"{' to '.join(map(str, tests))} test queries a task, {kind}; data: {source}")
        parts.append(markdown(table(found, methods)))
        notes = [difference(found, figure) for figure in ("accuracy", "ece")]
        parts.append("\n".join(filter(None, notes)))
    if any(row["eval_dataset"] != row["dataset"] for row in rows):
        parts.append("\\* out of domain: the task was not trained on.")
    return "\n\n".join(filter(None, parts)) + "\n"


def difference(rows, figure):
    """A line about ia2-sft against sft: the mean paired difference and its 95% bootstrap interval, or nothing."""
    differences = paired(rows, figure=figure)
    if len(differences) < 2:
        return ""
    scale, digits, unit = (100, 1, " points") if figure == "accuracy" else (1, 3, "")
    mean, low, high = (scale * value for value in metrics.bootstrap_interval(differences))
    return (f"ia2-sft minus sft, {figure}: {mean:+.{digits}f}{unit} [{low:+.{digits}f}, {high:+.{digits}f}] "
            f"(95% bootstrap interval of {len(differences)} paired results)")


def comma_separated(rows):
    """The figures of rows as CSV, a line a result, for spreadsheets and plotting."""
    names = [name for name in rows[0] if not isinstance(rows[0][name], (list, dict))] if rows else []
    file = io.StringIO()
    writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
