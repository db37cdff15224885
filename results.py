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


def make_folder(folder):
    """Make the folder for results, before anything long is started. Raises UserError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); give another --out") from None


def append(path, rows):
    """Add rows that are not there yet, in one write under a lock, so that several processes can share the file.

    A half line at the end is removed first. If the disk is full, the file is left as it was and UserError raised.
    """
    path = Path(path)
    with FileLock(path.with_name(f".{path.name}.lock")):
        known = {key(row) for row in read(path)}
        new = {key(row): row for row in rows if key(row) not in known}
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in new.values()).encode()
        with open(path, "ab", buffering=0) as file:  # a buffer would be written once more when the file is closed
            size = path.read_bytes().rfind(b"\n") + 1
            file.truncate(size)
            try:
                left = memoryview(lines)
                while left:
                    left = left[file.write(left):]
                os.fsync(file.fileno())
            except OSError as error:
                os.ftruncate(file.fileno(), size)
                raise UserError(f"cannot write to {path} ({error.strerror}); make room and run the same command again: "
                                "what is finished is kept") from None


# ---- tables ---------------------------------------------------------------------------------------------------------


def cell(row):
    """What one table is about: model, task, where its rows come from, how they are worded and drawn, n, and the targets' demos."""
    return row["model"], row["dataset"], row["source"], row["labels"], row["balanced"], row["n"], row.get("leave_out", "one")


def pick_rates(rows):
    """Rows of the learning rate with the lowest dev loss, per cell and method; never by test figures.

    Dev losses are averaged over the few-shot sets; rates that lack some of the sets are not picked.
    """
    groups = {}
    for row in rows:
        groups.setdefault((*cell(row), row["method"]), {}).setdefault(row["lr"], []).append(row)
    picked = []
    for rates in groups.values():
        losses = {rate: {row["set"]: row["dev_loss"] for row in found} for rate, found in rates.items()}
        most = max(map(len, losses.values()))
        mean = lambda rate: 0 if rate is None else statistics.fmean(losses[rate].values())  # base and icl have no rate
        picked += rates[min((rate for rate in rates if len(losses[rate]) == most), key=mean)]
    return picked


def spread(values, digits, scale=1):
    """`81.2 ± 3.4` of several values (mean and standard deviation), `81.2` of one, a dash of none."""
    values = [scale * value for value in values if value is not None]
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def table(rows, methods):
    """One cell's results as lists of texts: a head, then a line a method; the best of each column in bold.

    Columns that nothing has a value for are left out.
    """
    tests = list(dict.fromkeys(row["eval_dataset"] for row in rows))
    figures = [figure for figure in (("accuracy", "acc %", 1, 100, max), ("ece", "ECE", 3, 1, min), ("asim", "asim", 3, 1, None))
               if any(row[figure[0]] is not None for row in rows)]
    rated = any(row["lr"] for row in rows)
    columns = [(test, *figure) for test in tests for figure in figures]
    marks = {test: "" if test == rows[0]["dataset"] else "*" for test in tests}
    lines = [["method", *["lr"] * rated, *(f"{test}{marks[test]} {name}" for test, _, name, *_ in columns)]]
    found = {method: [row for row in rows if row["method"] == method] for method in methods}
    found = {method: chosen for method, chosen in found.items() if chosen}
    values = {(method, test, figure): [row[figure] for row in chosen if row["eval_dataset"] == test]
              for method, chosen in found.items() for test, figure, *_ in columns}
    for method, chosen in found.items():
        lines.append([method, *[f"{chosen[0]['lr']:g}" if chosen[0]["lr"] else "-"] * rated])
        for test, figure, _, digits, scale, better in columns:
            lines[-1].append(spread(values[method, test, figure], digits, scale))
    for place, (test, figure, _, digits, scale, better) in enumerate(columns, start=1 + rated):
        means = [mean_of(values[method, test, figure]) for method in found]
        if better and len(set(means) - {None}) > 1:
            for line, mean in zip(lines[1:], means):
                line[place] = f"**{line[place]}**" if mean == better(set(means) - {None}) else line[place]
    return lines


def mean_of(values):
    values = [value for value in values if value is not None]
    return statistics.fmean(values) if values else None


def markdown(lines):
    """A table as Markdown whose columns line up in a terminal too."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    text = ["| " + " | ".join(value.ljust(width) for value, width in zip(line, widths)) + " |" for line in lines]
    return "\n".join([text[0], "| " + " | ".join("-" * width for width in widths) + " |", *text[1:]])


def paired(rows, figure, first, second):
    """Differences first - second of a figure, paired by cell, few-shot set and test task."""
    by_method = {method: {(*cell(row), row["set"], row["eval_dataset"]): row[figure] for row in rows
                          if row["method"] == method and row[figure] is not None} for method in (first, second)}
    return [by_method[first][place] - by_method[second][place] for place in by_method[first] if place in by_method[second]]


def difference(rows, figure, first="ia2-sft", second="sft"):
    """(text, low, high) of the mean paired difference first - second and its 95% bootstrap interval; None of fewer than two."""
    found = paired(rows, figure, first, second)
    if len(found) < 2:
        return None
    scale, digits, unit = (100, 1, " points") if figure == "accuracy" else (1, 3, "")
    mean, low, high = (scale * value for value in metrics.bootstrap_interval(found))
    return (f"{first} minus {second}: {mean:+.{digits}f}{unit}, 95% interval [{low:+.{digits}f}, {high:+.{digits}f}], "
            f"{len(found)} pairs", low, high)


def tables(rows, methods):
    """The tables of some rows as Markdown, one for each task and n. `methods` gives the order of the lines."""
    if not rows:
        return "There are no results yet.\n"
    parts, picked = [], pick_rates(rows)
    for place in dict.fromkeys(map(cell, picked)):
        found = [row for row in picked if cell(row) == place]
        model, dataset, source, labels, balanced, n, left = place
        sets, tests = len({row["set"] for row in found}), sorted({row["test"] for row in found})
        kind = f"{labels} as labels, {'balanced' if balanced else 'random'} sets" if labels else "free text"
        kind += ", targets without one example of each label" if left == "each" else ""
        parts.append(f"### {dataset}, n = {n}, {Path(model).name}\n\n{sets} few-shot set{'s' if sets > 1 else ''}, "
                     f"{' to '.join(map(str, tests))} test queries a task, {kind}; data: {source}")
        parts.append(markdown(table(found, methods)))
        in_domain = [row for row in found if row["eval_dataset"] == dataset]
        others = [row for row in found if row["eval_dataset"] != dataset]
        parts.append("\n".join(f"- {name}{domain}, {outcome[0]}" for figure, name in (("accuracy", "accuracy"), ("ece", "ECE"))
                               for part, domain in ((in_domain, ""), (others, ", out of domain"))
                               if (outcome := difference(part, figure))))
    if any(row["eval_dataset"] != row["dataset"] for row in rows):
        parts.append("\\* out of domain: tested on a task that was not trained on.")
    if len({rate for row in rows if (rate := row["lr"])}) > 1:
        parts.append("The learning rate of each method is the one with the lowest dev loss, averaged over the sets.")
    return "\n\n".join(filter(None, parts)) + "\n"


# ---- analyses ---------------------------------------------------------------------------------------------------------


def report(rows, methods):
    """The tables and the paper's two analyses as Markdown: activations against calibration, what the updates share."""
    picked = pick_rates(rows)
    return "\n".join(filter(None, [tables(rows, methods), asim_by_layer(picked, methods), asim_by_position(picked, methods),
                                   asim_against_ece(rows), overlap(picked)]))


def mean_list(lists):
    """Element-wise mean of lists whose lengths may differ: each place over the lists that reach it."""
    return [statistics.fmean(found[place] for found in lists if len(found) > place) for place in range(max(map(len, lists)))]


def asim_by_layer(rows, methods, groups=6):
    """asim to ICL in consecutive groups of layers, averaged over all rows of a method."""
    lines = []
    for method in methods:
        lists = [row["asim_layers"] for row in rows if row["method"] == method and row.get("asim_layers")]
        if lists and method != "icl":
            layers = mean_list(lists)
            edges = [round(k * len(layers) / min(groups, len(layers))) for k in range(min(groups, len(layers)) + 1)]
            spans = list(zip(edges, edges[1:]))
            lines.append([method, *(f"{statistics.fmean(layers[low:high]):.3f}" for low, high in spans)])
    if not lines:
        return ""
    head = ["asim to ICL, layers", *(f"{low + 1}-{high}" if high > low + 1 else f"{high}" for low, high in spans)]
    return "### Activation similarity by layer\n\n" + markdown([head, *lines]) + "\n"


def asim_by_position(rows, methods, most=8):
    """asim to ICL at the first output positions of free-text tasks, averaged over layers; nothing for label tasks."""
    lines = []
    for method in methods:
        lists = [row["asim_positions"] for row in rows if row["method"] == method and len(row.get("asim_positions") or ()) > 1]
        if lists and method != "icl":
            lines.append([method, *(f"{value:.3f}" for value in mean_list(lists)[:most])])
    if not lines:
        return ""
    width = max(map(len, lines))
    lines = [line + ["-"] * (width - len(line)) for line in lines]
    return "### Activation similarity by output position\n\n" + markdown([["position", *map(str, range(1, width))], *lines]) + "\n"


def points(rows):
    """[(method, asim, ECE)] of all tests of trained models."""
    return [(row["method"], row["asim"], row["ece"]) for row in rows if row["lr"] and None not in (row["asim"], row["ece"])]


def asim_ece_correlation(rows):
    """(Spearman's rank correlation of asim and ECE, its p, tests of trained models) (paper, figure 3), or None: undefined."""
    pairs = [pair for _, *pair in points(rows)]
    correlation, p = metrics.rank_correlation(*zip(*pairs)) if len(pairs) >= 3 else (math.nan, 1)
    return None if math.isnan(correlation) else (correlation, p, len(pairs))


def asim_against_ece(rows):
    """The rank correlation of asim and ECE as a section of the report."""
    found = asim_ece_correlation(rows)
    if not found:
        return ""
    correlation, p, tests = found
    return ("### Activation similarity against calibration\n\n"
            f"Spearman's rank correlation of asim and ECE over {tests} tests of trained models: {correlation:+.3f} "
            f"(p = {p:.1g}). Below zero: the closer to ICL inside, the better calibrated.\n")


def overlap(rows):
    """Overlap of the subspaces of two methods' updates, per module, over sets and layers (paper, figure 4)."""
    found, chances = {}, {}
    for row in rows:
        for other, modules in (row.get("overlap") or {}).items():
            for module, layers in modules.items():
                found.setdefault((row["method"], other), {}).setdefault(module, []).append(layers)
        chances.update(row.get("overlap_chance") or {})
    if not found:
        return ""
    modules = list(dict.fromkeys(module for by_module in found.values() for module in by_module))
    parts = []
    for first, second in found:
        lists = {module: mean_list(found[first, second].get(module, [[]])) for module in modules}
        edges = [round(k * len(lists[modules[0]]) / 3) for k in range(4)]
        parts.append([f"{first}, {second}", *(f"{statistics.fmean(lists[module]):.3f} ("
                      + ", ".join(f"{statistics.fmean(lists[module][low:high] or [0]):.3f}" for low, high in zip(edges, edges[1:]))
                      + ")" for module in modules)])
    parts.append(["chance, r / d_out", *(f"{chances[module]:.3f}" if module in chances else "-" for module in modules)])
    return ("### Overlap of the updates' subspaces\n\n"
            + markdown([["methods", *(f"{module}: all layers (first, middle, last third)" for module in modules)], *parts]) + "\n")


def comma_separated(rows):
    """The figures of rows as CSV, a line a result, for spreadsheets and plotting."""
    names = list(dict.fromkeys(name for row in rows for name in row if not isinstance(row[name], (list, dict))))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def write_report(path, text, rows):
    """Put the tables as report.md and the figures as report.csv beside a results file; say where, or why not."""
    folder = Path(path).parent
    try:
        (folder / "report.md").write_text(text, encoding="utf-8")
        (folder / "report.csv").write_text(comma_separated(rows), encoding="utf-8")
        return f"also written: {folder / 'report.md'} and {folder / 'report.csv'}"
    except OSError as error:
        return f"report.md and report.csv were not written beside the results ({error.strerror})"
