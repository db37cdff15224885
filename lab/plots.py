"""Pictures of results and of activations. Each method has its colour and marker.

Axes take their limits from the data, so that nothing is cut off; titles say what is shown.
"""

import math
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import metrics
from lab import comparisons
from lab.cells import interval, label_counts, rate_text
from lab.diagnostics import arm_name, by_number
from lab.rows import (
    SETTING,
    TEST,
    Arm,
    apart_from,
    arms,
    at_rate,
    check_rows,
    group,
    is_number,
    mean,
    methods,
    rates,
)

STYLE = {
    "base": ("#777777", "o"),
    "icl": ("#000000", "s"),
    "sft": ("#E69F00", "^"),
    "ia2": ("#56B4E9", "D"),
    "ia2-sft": ("#0072B2", "P"),
    "sft-ia2": ("#D55E00", "v"),
    "ia2+sft": ("#009E73", "X"),
    "sft-icl": ("#A89A00", "<"),
    "kd": ("#CC79A7", ">"),
    "steer": ("#7F3C8D", "*"),
    "steer-sft": ("#4B1F52", "p"),
    "mean-sft": ("#2F7D4F", "d"),
    "format-sft": ("#B3432B", "h"),
    "random-sft": ("#8C6D46", "x"),
    "mean": ("#7FB98F", "d"),
    "format": ("#E08A78", "h"),
    "rotated": ("#6FB7C8", "H"),
    "rotated-sft": ("#1F7A8C", "H"),
    "flipped-sft": ("#5C4033", "8"),
    "sft-100": ("#B5651D", "1"),
    "sft-balanced": ("#C9A227", "2"),
    "sft-smooth": ("#8A7F2B", "3"),
    "sft-labels": ("#D98E04", "4"),
    "sft-prior": ("#F2B134", "+"),
}
OTHER_STYLE = ("#444444", ".")
LOOK = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 2,
    "lines.markersize": 7,
    "legend.frameon": False,
}
DUMBBELL = ("sft", "ia2-sft")
RECIPE = ("rank", "epochs", "keep")  # rows that differ in it are not drawn in one picture


# ---- frames --------------------------------------------------------------------------------------


def panels(count: int = 1, width: float = 6.0, height: float = 4.2, across: int = 6, **shared):
    """A figure without global state and a list of its axes, at most `across` beside each other."""
    columns = min(count, across)
    lines = math.ceil(count / columns)
    with rc_context(LOOK):
        figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
        axes = list(figure.subplots(lines, columns, squeeze=False, **shared).flat)
    for empty in axes[count:]:
        empty.remove()
    return figure, axes[:count]


def style(name: str) -> tuple[str, str]:
    """Colour and marker of a method, or of an arm of it (`ia2-sft, rank 32`)."""
    return STYLE.get(name.partition(",")[0], OTHER_STYLE)


def plain(text: str) -> str:
    """A text without formulas: the dollars of a folder's name are dollars."""
    return text.replace("$", r"\$")


def shortened(name: str) -> str:
    """The end of a folder's long path; other names are short."""
    return name if len(name) <= 40 else f"…{name[-39:]}"


def wrapped(title: str, figure: Figure, an_inch: int = 12) -> str:
    """A title in at most three lines of the figure's width, at so many characters an inch."""
    return plain(textwrap.fill(title, int(an_inch * figure.get_figwidth()), max_lines=3))


def spread(values: Iterable[float], *others: float) -> tuple[float, float]:
    """Limits of an axis that hold all finite values, and some others, with a margin."""
    held = [value for value in (*values, *others) if is_number(float(value))]
    low = min(held, default=0.0)
    high = max(held, default=1.0)
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def legend_below(figure: Figure, columns: int = 5) -> None:
    """One legend for all panels, below them, where it hides nothing."""
    entries = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    columns = min(columns, len(entries)) or 1
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=columns,
        fontsize="small",
        handletextpad=1,
    )


# ---- results -------------------------------------------------------------------------------------


def set_by_set(rows: list[dict], title: str) -> Figure:
    """Accuracy on each few-shot set, SFT joined to IA2 then SFT; a panel a learning rate.

    `rows` are of one setting and test. A line says which labels the training examples have, the
    last one is the mean; the other methods stand a little lower. A panel's title gives the
    difference with its interval.
    """
    at_rates = rates(rows) or [None]
    lines = len(by_number(rows)) + 1
    figure, axes = panels(len(at_rates), 5.4, 1.9 + 0.5 * lines, sharey=True, sharex=True)
    for axis, lr in zip(axes, at_rates):
        dumbbells(axis, at_rate(rows, lr), lr)
    names = [set_name(same) for same in by_number(rows).values()]
    axes[0].set_yticks(range(lines), [plain(name) for name in [*names, "mean"]])
    axes[0].set_ylim(lines - 0.3, -0.6)
    axes[0].set_xlim(spread([0, 100]))
    legend_below(figure, 10 if len(axes) > 1 else 5)
    figure.suptitle(wrapped(title, figure), fontsize="medium")
    return figure


def set_name(rows: list[dict]) -> str:
    return f"set {rows[0]['set']}: {label_counts(rows[0].get('train_labels'))}"


def dumbbells(axis: Axes, rows: list[dict], lr: float | None) -> None:
    """One panel of `set_by_set`."""
    shown = arms(rows)
    groups = list(by_number(rows).values())
    whole = [same for same in groups if arms(same) == shown]
    groups.append([row for same in whole for row in same])  # the mean: sets that all methods have
    for arm in shown:
        colour, marker = style(arm.method)
        lower = 0 if arm.method in DUMBBELL else 0.3
        heights = means_of(arm, groups)
        is_sft = arm.method == "sft"
        axis.plot(
            heights.values(),
            [place + lower for place in heights],
            marker,
            color=colour,
            markerfacecolor="none" if is_sft else colour,  # open, so that it hides nothing
            markersize=10 if is_sft else 6,
            label=arm_name(arm, shown),
            zorder=3,
        )
    joined = [plainest(shown, method) for method in DUMBBELL]
    starts, ends = (means_of(arm, groups) for arm in joined)
    for place in starts:
        if place in ends:
            line = [starts[place], ends[place]]
            axis.plot(line, [place, place], color="#BBBBBB", linewidth=3, zorder=1)
    pair = [row for row in rows if any(arm.holds(row) for arm in joined)]
    by_set = comparisons.paired(pair, "accuracy", "ia2-sft", "sft")
    text = f"at {rate_text(lr)}" if lr else ""
    if by_set:
        text += f"\nia2-sft minus sft: {interval(by_set.values(), 100, 1, '+')}"
    axis.set_title(text.strip(), fontsize="small")
    axis.set_xlabel("accuracy %, top-1")


def means_of(arm: Arm, groups: list[list[dict]]) -> dict[int, float]:
    """{number of a group of rows: mean accuracy of an arm in %}, of groups that have it."""
    found = {}
    for place, same in enumerate(groups):
        value = mean((row for row in same if arm.holds(row)), "accuracy")
        if is_number(value):
            found[place] = 100 * value
    return found


def plainest(found: list[Arm], method: str) -> Arm:
    """The arm of a method with the fewest options; of a method without rows one that has none."""
    own = [arm for arm in found if arm.method == method]
    return min(own, key=lambda arm: len(arm.options), default=Arm(method))


def forest(lines: dict[str, list[float]], xlabel: str, title: str) -> Figure:
    """Differences with their 95% intervals over few-shot sets: {name: a difference a set}."""
    figure, (axis,) = panels(width=10, height=1.6 + 0.38 * len(lines))
    draw_forest(axis, lines, xlabel)
    legend_below(figure)
    figure.suptitle(wrapped(title, figure), fontsize="medium")
    return figure


def draw_forest(axis, lines: dict[str, list[float]], xlabel: str) -> None:
    colour, _ = STYLE["ia2-sft"]
    ends = [0.0]
    names = []
    for place, (name, values) in enumerate(lines.items()):
        found = metrics.t_interval(values)
        bounds = [bound for bound in (found.low, found.high) if is_number(bound)]
        if bounds:
            axis.plot(bounds, [place, place], color=colour, linewidth=2)
        axis.plot(values, [place] * len(values), "|", color="#999999", markersize=6)
        axis.plot([found.mean], [place], "o", color=colour)
        ends += [*values, *bounds]
        names.append(plain(f"{name} ({len(values)})"))
    axis.axvline(0, color="#333333", linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(spread(ends))
    axis.set_xlabel(xlabel)
    axis.plot([], [], "o-", color=colour, linewidth=2, label="mean, 95% interval")
    axis.plot([], [], "|", color="#999999", label="a few-shot set (number of sets)")


def reliability(outcomes: dict[str, list], title: str) -> Figure:
    """Reliability diagrams side by side; on the dashed line, confidence is accuracy.

    `outcomes` is {method: the outcomes of its queries} as a results row has them; confidence is
    that of the likeliest label among the labels. Each method's ECE stands with the floor of its own
    confidences: what a calibrated model with these would score on so many queries.
    """
    figure, axes = panels(len(outcomes), 3.7, 4.0, across=3, sharex=True, sharey=True)
    for axis, (method, queries) in zip(axes, outcomes.items()):
        confidence = np.array([max(shares) for *_, shares in queries])
        correct = np.array([right == chosen for right, chosen, *_ in queries])
        bins = metrics.reliability(confidence, correct)
        axis.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1.5)
        axis.scatter(
            [each.confidence for each in bins],
            [each.accuracy for each in bins],
            s=[20 + 600 * each.count / len(queries) for each in bins],
            color=style(method)[0],
            edgecolor="white",
            zorder=3,
            clip_on=False,
        )
        floor, _ = metrics.ece_floor(confidence)
        ece = metrics.ece(confidence, correct)
        axis.set_title(f"{method}: ECE {ece:.2f}\n(its floor {floor:.2f})", fontsize="medium")
        axis.set(xlim=spread([0, 1]), ylim=spread([0, 1]))
        axis.set(xlabel="confidence", ylabel="accuracy of the bin")
        axis.label_outer()
    for share in (0.1, 0.5):
        size = 20 + 600 * share
        axes[-1].scatter([], [], s=size, color="#BBBBBB", label=f"{share:.0%} of the queries")
    legend_below(figure)
    figure.suptitle(wrapped(title, figure), fontsize="medium")
    return figure


# ---- activations ---------------------------------------------------------------------------------


def asim_by_layer(
    layers: dict[str, list[float]],
    title: str = "Similarity of activations to ICL's, by layer",
) -> Figure:
    """A line a method over the layers; `layers` is {method: [asim of layer 1, 2, ...]}."""
    figure, (axis,) = panels(width=8)
    for method, values in layers.items():
        colour, marker = style(method)
        axis.plot(
            range(1, len(values) + 1),
            values,
            color=colour,
            marker=marker,
            markersize=5,
            label=f"{method}: mean {fmean(values):.2f}",
        )
    every = [value for values in layers.values() for value in values]
    axis.set(xlabel="layer", ylabel="asim to ICL (cosine)", ylim=spread(every, 0, 1))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_title(wrapped(title, figure, an_inch=10))
    legend_below(figure, 3)
    return figure


def loss_by_layer(before: list[float], after: list[float]) -> Figure:
    """The IA2 loss of each layer before and after training: two lists of L numbers."""
    figure, (axis,) = panels(width=8)
    layers = np.arange(1, len(before) + 1)
    base = f"base: {sum(before):.3g} in all"
    trained = f"after IA2: {sum(after):.3g} in all"
    axis.bar(layers - 0.2, before, 0.4, color=STYLE["base"][0], label=base)
    axis.bar(layers + 0.2, after, 0.4, color=STYLE["ia2"][0], label=trained)
    axis.set(xlabel="layer", ylabel="mean squared difference")
    axis.set_title("L_IA2 by layer")
    legend_below(figure)
    return figure


def clouds(points: dict[str, dict], title: str = "") -> Figure:
    """Activations in two dimensions, a panel a group: `points` is {panel: {method: (N, 2)}}."""
    figure, axes = panels(len(points), 3.6, 3.8, sharex=True, sharey=True)
    for axis, (name, groups) in zip(axes, points.items()):
        for method, values in groups.items():
            colour, marker = style(method)
            xs, ys = np.asarray(values).T
            axis.scatter(xs, ys, s=14, alpha=0.6, color=colour, marker=marker, label=method)
        axis.set(title=plain(name), xlabel="first component")
    axes[0].set_ylabel("second component")
    legend_below(figure)
    figure.suptitle(wrapped(title, figure), fontsize="medium")
    return figure


def curves(lines: dict[str, tuple], ylabel: str, title: str) -> Figure:
    """Lines over training steps: `lines` is {name: (steps, values)}."""
    figure, (axis,) = panels(width=7)
    colours = [STYLE["ia2"], STYLE["sft"], STYLE["ia2-sft"], STYLE["steer"]]
    for i, (name, (steps, values)) in enumerate(lines.items()):
        colour, marker = colours[i % len(colours)]
        axis.plot(steps, values, color=colour, marker=marker, markersize=4, label=name)
    axis.set(xlabel="training step", ylabel=ylabel)
    axis.set_title(wrapped(title, figure, an_inch=10))
    legend_below(figure)
    return figure


# ---- all of a file -------------------------------------------------------------------------------


def save_all(rows: list[dict], folder: str) -> list[Path]:
    """Write the pictures of a results file as PNG into a folder; their paths."""
    check_rows(rows)
    Path(folder).mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name, same in picture_rows(rows):
        pictures[f"{name} sets {len(pictures)}"] = set_by_set(same, name)
        lr = comparisons.PLAN_RATE if comparisons.PLAN_RATE in rates(same) else None
        at = at_rate(same, lr or (rates(same) or [None])[0])
        layers = mean_layers(at)
        if layers:
            figure = asim_by_layer(layers, f"{name}{at_text(at)}")
            pictures[f"{name} layers {len(pictures)}"] = figure
        outcomes = pooled_outcomes(at)
        if outcomes:
            figure = reliability(outcomes, f"{name}{at_text(at)}, all sets' queries")
            pictures[f"{name} reliability {len(pictures)}"] = figure
    pictures |= against_priming(rows)
    pictures |= against_base(rows)
    found = forest_lines(rows)
    if found:
        title = "IA2 then SFT minus SFT, mean over tests"
        pictures["differences"] = forest(found, "accuracy, points", title)
    paths = []
    for name, figure in pictures.items():
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", name)[-120:].strip("-")  # a name has its limit
        paths.append(Path(folder, f"{slug}.png"))
        figure.savefig(paths[-1], dpi=100)
    return paths


def picture_rows(rows: list[dict]) -> Iterator[tuple[str, list[dict]]]:
    """A title and the rows of each setting, test and recipe; what is not trained is in all."""
    for same in group(rows, (*SETTING, *TEST)).values():
        row = same[0]
        dataset, test = shortened(row["dataset"]), shortened(row["eval_dataset"])
        title = f"{dataset} to {test}, n = {row['n']}, {shortened(row['model'])}"
        untrained = [row for row in same if row.get("lr") is None]
        recipes = group((row for row in same if row.get("lr") is not None), RECIPE)
        for values, trained in (recipes or {(): []}).items():
            chosen = [f", {name} {value}" for name, value in zip(RECIPE, values)]
            yield title + "".join(chosen if len(recipes) > 1 else []), untrained + trained


def at_text(rows: list[dict]) -> str:
    found = rates(rows)
    return f", at {rate_text(found[0])}" if found else ""


def mean_layers(rows: list[dict]) -> dict[str, list[float]]:
    """{method: asim of each layer}, the mean over few-shot sets."""
    layers = {}
    shown = arms(rows)
    for arm in shown:
        lists = [row["asim_layers"] for row in rows if arm.holds(row) and row.get("asim_layers")]
        if lists:
            layers[arm_name(arm, shown)] = np.mean(lists, axis=0).tolist()
    return layers


def pooled_outcomes(rows: list[dict]) -> dict[str, list]:
    """{method: the outcomes of all few-shot sets' queries} of a label task."""
    outcomes = {}
    shown = arms(rows)
    for arm in shown:
        for row in rows:
            if arm.holds(row) and row.get("labels") and row.get("outcomes"):
                outcomes.setdefault(arm_name(arm, shown), []).extend(row["outcomes"])
    return outcomes


def forest_lines(rows: list[dict]) -> dict[str, list[float]]:
    """{name: differences of few-shot sets, in points} for each setting and rate; the tests of a set
    are averaged.
    """
    lines = {}
    settings = in_order_of_n(comparisons.planned(rows))
    firsts = [same[0] for same in settings]
    for same in settings:
        row = same[0]
        alike = [other for other in firsts if forest_name(other) == forest_name(row)]
        names = [forest_name(row), *apart_from(row, alike, SETTING)]
        for lr in rates(same):
            by_set = comparisons.paired(at_rate(same, lr), "accuracy", "ia2-sft", "sft")
            if by_set:
                name = ", ".join([*names, rate_text(lr)])
                lines[name] = [100 * value for value in by_set.values()]
    return lines


def forest_name(row: dict) -> str:
    labels = f", {row['labels']}" if row.get("labels") else ""
    return f"{shortened(row['model'])}, {shortened(row['dataset'])}{labels}, n = {row['n']}"


def in_order_of_n(rows: list[dict]) -> list[list[dict]]:
    """The rows of each setting; those that differ in n alone stand together, the smallest first."""
    settings = []
    for same in group(rows, [field for field in SETTING if field != "n"]).values():
        settings += sorted(group(same, ["n"]).values(), key=lambda part: part[0]["n"])
    return settings


def against_priming(rows: list[dict]) -> dict[str, Figure]:
    """{name: a forest of every method minus IA2 then SFT at the planned rate} for each setting in
    which SFT was primed in other ways too.
    """
    pictures = {}
    at_plan = at_rate(comparisons.planned(rows), comparisons.PLAN_RATE)
    for same in group(at_plan, SETTING).values():
        lines = lines_against(same, "accuracy", "ia2-sft")
        if any(name.endswith("-sft") for name in lines):
            name = setting_name(same[0])
            title = f"{name}: method minus IA2 then SFT, mean over tests"
            pictures[f"{name} primers {len(pictures)}"] = forest(lines, "accuracy, points", title)
    return pictures


BESIDE_BASE = {
    "accuracy_among_labels": "accuracy among the labels, points",
    "accuracy_batch_calibrated": "after batch calibration, points",
    "label_auroc": "AUROC of labels, hundredths",
}


def against_base(rows: list[dict]) -> dict[str, Figure]:
    """{name: every method minus base at the planned rate, by accuracy among the labels, the same
    after batch calibration, and AUROC of labels} for each setting whose rows have all three.
    """
    pictures = {}
    at_plan = at_rate(comparisons.planned(rows), comparisons.PLAN_RATE)
    measured = [row for row in at_plan if all(is_number(row.get(field)) for field in BESIDE_BASE)]
    for same in group(measured, SETTING).values():
        panel_lines = {}
        for field, head in BESIDE_BASE.items():
            panel_lines[head] = lines_against(same, field, "base")
        shown = next(iter(panel_lines.values()))
        if not shown:
            continue
        figure, axes = panels(3, 4.3, 1.7 + 0.38 * len(shown), sharey=True)
        for axis, (head, lines) in zip(axes, panel_lines.items()):
            draw_forest(axis, lines, head)
        legend_below(figure)
        name = setting_name(same[0])
        title = f"{name}: method minus base, mean over tests"
        figure.suptitle(wrapped(title, figure), fontsize="medium")
        pictures[f"{name} beside base {len(pictures)}"] = figure
    return pictures


def lines_against(rows: list[dict], field: str, other: str) -> dict[str, list[float]]:
    """{method: its differences from another one, in hundredths} of methods with three sets or more;
    an interval over two would be wider than all others.
    """
    lines = {}
    for method in methods(rows):
        by_set = comparisons.paired(rows, field, method, other)
        if len(by_set) > 2 and method not in ("base", other):
            lines[method] = [100 * value for value in by_set.values()]
    return lines


def setting_name(row: dict) -> str:
    return f"{shortened(row['model'])}, {shortened(row['dataset'])}, n = {row['n']}"
