"""The figures: one small function each, for the notebook and for `--plots DIR`. Each says in its title what it shows.

Colours are those of Okabe and Ito, which colour-blind people can tell apart; every method also has a marker of its own.
"""
import statistics
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

import metrics
import results

STYLE = {  # method: (colour, marker)
    "base": ("#777777", "o"), "icl": ("#000000", "s"), "sft": ("#E69F00", "^"), "ia2": ("#56B4E9", "D"),
    "ia2-sft": ("#0072B2", "P"), "sft-ia2": ("#D55E00", "v"), "ia2+sft": ("#009E73", "X"), "sft-icl": ("#A89A00", "<"),
    "kd": ("#CC79A7", ">"),
}
LOOK = {"font.size": 13, "axes.titlesize": 14, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.alpha": 0.3, "lines.linewidth": 2.2, "lines.markersize": 7, "legend.frameon": False, "figure.dpi": 100,
        "savefig.dpi": 150}


def style(method):
    return STYLE.get(method, ("#444444", "o"))


def panels(count=1, width=6.0, height=4.4, **shared):
    """A new figure and its row of axes (always a list), which belongs to no global state."""
    with rc_context(LOOK):
        figure = Figure(figsize=(width * count, height), layout="constrained")
        axes = figure.subplots(1, count, squeeze=False, **shared)[0]
    return figure, list(axes)


def drawn(function):
    """Give a figure function the common look."""
    def inner(*arguments, **options):
        with rc_context(LOOK):
            return function(*arguments, **options)
    inner.__name__, inner.__doc__, inner.__wrapped__ = function.__name__, function.__doc__, function
    return inner


# ---- calibration --------------------------------------------------------------------------------------------------


@drawn
def reliability(groups, eces=None, title=None):
    """Reliability diagrams side by side. `groups` is {method: [(count, mean confidence, accuracy) of each bin]}.

    On the diagonal confidence is accuracy; the area of a point is its share of the queries. `eces` {method: ECE} are
    printed instead of the errors of these bins, which are smaller where the bins of several sets are pooled.
    """
    figure, axes = panels(len(groups), 4.4, 4.6, sharey=True)
    errors = {}
    for axis, (method, bins) in zip(axes, groups.items()):
        counts, confidence, accuracy = np.array(bins, dtype=float).T
        errors[method] = eces[method] if eces else metrics.calibration_error(bins)
        mean = (counts * accuracy).sum() / counts.sum()
        axis.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1.5)
        colour = style(method)[0]
        axis.vlines(confidence, np.minimum(confidence, accuracy), np.maximum(confidence, accuracy), color=colour, alpha=0.5)
        axis.scatter(confidence, accuracy, s=30 + 900 * counts / counts.sum(), color=colour, edgecolor="white", zorder=3)
        axis.set(title=f"{method}: accuracy {100 * mean:.0f}%, ECE {errors[method]:.3f}", xlabel="confidence", xlim=(0.4, 1.02),
                 ylim=(-0.02, 1.04))
        if confidence.min() < 0.42:  # more than two labels
            axis.set_xlim(0, 1.02)
    axes[0].set_ylabel("accuracy of the bin")
    best = min(errors, key=errors.get)
    if len(errors) > 1:
        figure.suptitle(title or f"Best calibrated: {best}")
    elif title:
        figure.suptitle(title)
    return figure


@drawn
def asim_against_ece(points):
    """Every trained model as a point: `points` is [(method, asim, ECE)] (paper, figure 3)."""
    figure, (axis,) = panels(1, 7, 4.8)
    for method in dict.fromkeys(method for method, *_ in points):
        values = np.array([(asim, ece) for name, asim, ece in points if name == method])
        axis.scatter(*values.T, color=style(method)[0], marker=style(method)[1], label=method, alpha=0.75, s=45)
    correlation, p = metrics.rank_correlation(*zip(*((asim, ece) for _, asim, ece in points)))
    known = correlation == correlation
    word = "better" if correlation < 0 else "worse"
    claim = (f"Closer to ICL inside, {word} calibrated" if p < 0.05 else "Closeness to ICL and calibration: no clear relation") \
        if known else "Activation similarity and calibration"
    axis.set(xlabel="asim: similarity of activations to ICL's", ylabel="ECE: expected calibration error",
             title=claim + (f"\nrank correlation {correlation:+.2f}, {len(points)} tests of trained models" if known else ""))
    axis.set_ylim(bottom=0)
    axis.legend(ncols=2, handletextpad=0.2)
    return figure


# ---- activations --------------------------------------------------------------------------------------------------


@drawn
def asim_by_layer(layers, title=None):
    """Lines of asim to ICL over the layers: `layers` is {method: [asim of layer 1, 2, ...]}."""
    figure, (axis,) = panels(1, 8, 4.6)
    for method, values in layers.items():
        axis.plot(range(1, len(values) + 1), values, color=style(method)[0], marker=style(method)[1], markersize=5,
                  label=f"{method} (mean {statistics.fmean(values):.2f})")
    best = max(layers, key=lambda method: statistics.fmean(layers[method]))
    axis.set(xlabel="layer", ylabel="asim: cosine to ICL's activations", ylim=(min(0, *map(min, layers.values())), 1.03),
             title=title or (f"Inside, {best} is closest to ICL" if len(layers) > 1 else f"How close {best} is to ICL, by layer"))
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure


@drawn
def asim_heat(table, across="query", title=None):
    """A heat map of asim (L, queries or G): how alike activations with and without demos are, for each layer and query, or
    for each layer and output position."""
    table = np.asarray(table)
    figure, (axis,) = panels(1, 8, 4.8)
    axis.grid(visible=False)
    image = axis.imshow(table, aspect="auto", origin="lower", cmap="viridis", vmin=min(0, table.min()), vmax=1,
                        extent=(0.5, table.shape[1] + 0.5, 0.5, table.shape[0] + 0.5))
    figure.colorbar(image, ax=axis, label="asim: cosine, with against without demos")
    means = table.mean(1)
    axis.set(xlabel=across, ylabel="layer", title=title or f"Demos change what happens inside most in layer {means.argmin() + 1} "
                                                            f"(mean asim {means.min():.2f})")
    return figure


@drawn
def training(curves, title):
    """Panels of a quantity over the steps: `curves` is {label of the y axis: {name: (steps, values)}}."""
    figure, axes = panels(len(curves), 6, 4.2)
    for axis, (label, lines) in zip(axes, curves.items()):
        for (name, (steps, values)), (colour, marker) in zip(lines.items(), [STYLE["ia2-sft"], STYLE["sft"], STYLE["ia2+sft"]]):
            axis.plot(steps, values, color=colour, marker=marker, markersize=5, label=name)
        axis.set(xlabel="training step", ylabel=label)
        if len(lines) > 1:
            axis.legend()
    figure.suptitle(title)
    return figure


@drawn
def loss_by_layer(before, after):
    """The IA2 loss of each layer before and after training: two lists of L numbers."""
    figure, (axis,) = panels(1, 8, 4.2)
    places = np.arange(1, len(before) + 1)
    axis.bar(places - 0.2, before, 0.4, color=STYLE["base"][0], label=f"before: {sum(before):.3g} in all")
    axis.bar(places + 0.2, after, 0.4, color=STYLE["ia2"][0], label=f"after: {sum(after):.3g} in all")
    axis.set(yscale="log", xlabel="layer", ylabel="mean squared difference",
             title=f"IA2 lowers the loss in {sum(b > a for b, a in zip(before, after))} of {len(before)} layers")
    axis.legend()
    return figure


# ---- results ------------------------------------------------------------------------------------------------------


@drawn
def accuracy_against_n(accuracies, task=""):
    """Accuracy over the number of examples: `accuracies` is {method: {n: [accuracy of each few-shot set]}}."""
    figure, (axis,) = panels(1, 7.5, 4.8)
    numbers = sorted({n for by_n in accuracies.values() for n in by_n})
    means = {method: {n: 100 * statistics.fmean(values) for n, values in by_n.items()} for method, by_n in accuracies.items()}
    for place, (method, by_n) in enumerate(accuracies.items()):
        found = sorted(by_n)
        spread = [100 * statistics.stdev(by_n[n]) if len(by_n[n]) > 1 else 0 for n in found]
        shift = 1 + 0.02 * (place - len(accuracies) / 2)
        axis.errorbar([n * shift for n in found], [means[method][n] for n in found], spread, color=style(method)[0],
                      marker=style(method)[1], capsize=3, elinewidth=1.2, label=method)
    last = {method: by_n[numbers[-1]] for method, by_n in means.items() if numbers[-1] in by_n}
    best = max(last, key=last.get)
    axis.set_xscale("log", base=2)
    axis.set_xticks(numbers, map(str, numbers))
    axis.minorticks_off()
    axis.set_xlim(numbers[0] / 1.4, numbers[-1] * 1.4)
    axis.set(xlabel="n, examples in the few-shot set", ylabel="accuracy %, mean and deviation over sets",
             title=f"{task}{': ' if task else ''}with {numbers[-1]} examples {best} is the most accurate ({last[best]:.0f}%)")
    axis.legend(ncols=2)
    return figure


@drawn
def overlap(found, chance):
    """Overlap of two updates' subspaces by layer (paper, figure 4), a panel for each module, the chance level dashed.

    `found` is {"first, second": {module: [by layer]}}, `chance` {module: r / d_out}.
    """
    modules = list(dict.fromkeys(module for by_module in found.values() for module in by_module))
    figure, axes = panels(len(modules), 4.6, 4.4, sharey=True)
    colours = [STYLE[name] for name in ("ia2", "sft", "ia2-sft")]
    for axis, module in zip(axes, modules):
        for (pair, by_module), (colour, marker) in zip(found.items(), colours):
            layers = by_module[module]
            axis.plot(range(1, len(layers) + 1), layers, color=colour, marker=marker, markersize=4, label=pair)
        axis.axhline(chance[module], color="#000000", linestyle="--", linewidth=1.5, label="chance")
        axis.set(title=f"W_{module.upper()}", xlabel="layer", ylim=(0, 1.02))
    axes[0].set_ylabel("share of the subspace in common")
    axes[-1].legend()
    means = {pair: statistics.fmean(value for layers in by_module.values() for value in layers)
             for pair, by_module in found.items()}
    best = max(means, key=means.get)
    figure.suptitle(f"Most in common: the updates of {best} ({100 * means[best]:.0f}% of the subspace)")
    return figure


@drawn
def cost(tokens):
    """Bars of tokens that a query costs: `tokens` is {what: tokens per query}."""
    figure, (axis,) = panels(1, 7, 2.8)
    names = list(tokens)
    bars = axis.barh(names[::-1], [tokens[name] for name in names[::-1]],
                     color=[STYLE["ia2-sft"][0] if "adapter" in name else STYLE["base"][0] for name in names[::-1]])
    axis.bar_label(bars, fmt="%.0f", padding=4)
    axis.set(xlabel="tokens in the prompt of one query", xlim=(0, 1.1 * max(tokens.values())),
             title=f"Demos cost {max(tokens.values()) / min(tokens.values()):.0f} times the tokens of an adapter, for every query")
    return figure


# ---- all of a results file ------------------------------------------------------------------------------------------


def pooled(rows):
    """The reliability bins of several rows as one: counts added, means weighted by them."""
    bins = {}
    for row in rows:
        for count, confidence, accuracy in row["reliability"]:
            place = min(int(confidence * row["bins"] - 1e-9), row["bins"] - 1)
            bins.setdefault(place, []).append((count, confidence, accuracy))
    found = []
    for place in sorted(bins):
        counts, confidence, accuracy = np.array(bins[place], dtype=float).T
        found.append((int(counts.sum()), float(counts @ confidence / counts.sum()), float(counts @ accuracy / counts.sum())))
    return found


def overlaps(rows):
    """({"first, second": {module: [by layer]}}, {module: chance}) over the rows of picked learning rates."""
    lists, chance = {}, {}
    for row in rows:
        for other, modules in (row.get("overlap") or {}).items():
            for module, layers in modules.items():
                lists.setdefault(f"{other}, {row['method']}", {}).setdefault(module, []).append(layers)
        chance.update(row.get("overlap_chance") or {})
    return {pair: {module: results.mean_list(found) for module, found in modules.items()} for pair, modules in lists.items()}, chance


def all_figures(rows):
    """{file name: figure} of a results file; learning rates as in the tables."""
    picked, figures = results.pick_rates(rows), {}
    names = {}
    for row in picked:
        names.setdefault(f"{row['dataset']}-n{row['n']}", []).append(results.cell(row))
    slugs = {cell: f"{name}{f'-{place}' if place else ''}" for name, cells in names.items()
             for place, cell in enumerate(dict.fromkeys(cells))}
    for cell, slug in slugs.items():
        here = [row for row in picked if results.cell(row) == cell]
        methods = list(dict.fromkeys(row["method"] for row in here))
        layers = {method: results.mean_list(lists) for method in methods if method != "icl" and (
            lists := [row["asim_layers"] for row in here if row["method"] == method and row.get("asim_layers")])}
        if layers:
            figures[f"asim-by-layer-{slug}"] = asim_by_layer(layers)
        for task in dict.fromkeys(row["eval_dataset"] for row in here):
            groups = {method: pooled(found) for method in ("base", "icl", "sft", "ia2", "ia2-sft") if (
                found := [row for row in here if row["method"] == method and row["eval_dataset"] == task and row.get("reliability")])}
            if groups:
                figures[f"reliability-{slug}-{task}"] = reliability(groups, {method: statistics.fmean(
                    row["ece"] for row in here if row["method"] == method and row["eval_dataset"] == task) for method in groups})
        found, chance = overlaps(here)
        if found:
            figures[f"overlap-{slug}"] = overlap(found, chance)
    for pair in dict.fromkeys((row["dataset"], row["eval_dataset"]) for row in picked):
        accuracies = {}
        for row in picked:
            if (row["dataset"], row["eval_dataset"]) == pair and row["method"] in ("base", "icl", "sft", "ia2", "ia2-sft"):
                accuracies.setdefault(row["method"], {}).setdefault(row["n"], []).append(row["accuracy"])
        if accuracies:
            figures[f"accuracy-against-n-{'-'.join(pair)}"] = accuracy_against_n(accuracies, pair[1])
    if len(results.points(rows)) >= 3:
        figures["asim-against-ece"] = asim_against_ece(results.points(rows))
    return figures


def save_all(rows, folder):
    """Write every figure of a results file as PNG; returns their paths."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in all_figures(rows).items():
        paths.append(Path(folder, f"{name}.png"))
        figure.savefig(paths[-1], dpi=150)
    return paths
