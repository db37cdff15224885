"""Pictures of results and of activations. Each method has its colour and marker."""
import re
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

STYLE = {"base": ("#777777", "o"), "icl": ("#000000", "s"), "sft": ("#E69F00", "^"), "ia2": ("#56B4E9", "D"),
         "ia2-sft": ("#0072B2", "P"), "sft-ia2": ("#D55E00", "v"), "ia2+sft": ("#009E73", "X"),
         "sft-icl": ("#A89A00", "<"), "kd": ("#CC79A7", ">")}
LOOK = {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.alpha": 0.3, "lines.linewidth": 2, "lines.markersize": 7, "legend.frameon": False}

def panels(count=1, width=6.0, height=4.2, **shared):
    """A figure and its row of axes (always a list), of no global state."""
    with rc_context(LOOK):
        figure = Figure(figsize=(width * count, height), layout="constrained")
        return figure, list(figure.subplots(1, count, squeeze=False, **shared)[0])

def set_by_set(rows, title):
    """Accuracy of each few-shot set as a line across the methods; `rows` are of one test, n and rate."""
    figure, (axis,) = panels(width=8)
    methods = [method for method in STYLE if any(row["method"] == method for row in rows)]
    for i in sorted({row["set"] for row in rows}):
        values = {row["method"]: 100 * row["accuracy"] for row in rows if row["set"] == i}
        places = [methods.index(method) for method in values]
        axis.plot(places, values.values(), marker="o", alpha=0.8, label=f"set {i}")
    means = [100 * fmean(row["accuracy"] for row in rows if row["method"] == method) for method in methods]
    axis.plot(range(len(methods)), means, "_", color="black", markersize=34, markeredgewidth=3, label="mean")
    axis.set_xticks(range(len(methods)), methods)
    axis.set(ylabel="accuracy %, top-1", ylim=(-2, 102), title=title)
    axis.legend(ncols=3, fontsize="small", loc="lower right", markerscale=0.6, columnspacing=1.2)
    return figure

def asim_by_layer(layers, title="Similarity of activations to ICL's, by layer"):
    """`layers` is {method: [asim of layer 1, 2, ...]}."""
    figure, (axis,) = panels(width=8)
    for method, values in layers.items():
        colour, marker = STYLE.get(method, ("#444444", "."))
        axis.plot(range(1, len(values) + 1), values, color=colour, marker=marker, markersize=5,
                  label=f"{method}: mean {fmean(values):.2f}")
    lowest = min(0, *map(min, layers.values()))
    axis.set(xlabel="layer", ylabel="asim to ICL (cosine)", ylim=(lowest, 1.03), title=title)
    axis.legend(ncols=2, fontsize="small")
    return figure

def reliability(bins, eces, floor, title="Reliability: on the dashed line, confidence is accuracy"):
    """Diagrams side by side: `bins` is {method: [(count, confidence, accuracy)]}, `eces` {method: ECE},
    `floor` the ECE of a perfectly calibrated model."""
    figure, axes = panels(len(bins), 3.6, 4.2, sharey=True)
    for axis, (method, groups) in zip(axes, bins.items()):
        counts, confidence, accuracy = np.array(groups, dtype=float).T
        axis.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1.5)
        sizes = 20 + 600 * counts / counts.sum()
        axis.scatter(confidence, accuracy, s=sizes, color=STYLE[method][0], edgecolor="white", zorder=3)
        axis.set(title=f"{method}: ECE {eces[method]:.3f}", xlabel="confidence", xlim=(-0.03, 1.05),
                 ylim=(-0.03, 1.05))
    for share in (0.1, 0.5):
        axes[-1].scatter([], [], s=20 + 600 * share, color="#BBBBBB", label=f"{share:.0%} of the queries")
    axes[-1].legend(fontsize="small", loc="upper left", labelspacing=1.2)
    axes[0].set_ylabel("accuracy of the bin")
    figure.suptitle(f"{title} (noise floor of ECE: {floor:.3f})", fontsize="medium")
    return figure

def curves(lines, ylabel, title):
    """Lines over training steps: `lines` is {name: (steps, values)}."""
    figure, (axis,) = panels(width=7)
    styles = [STYLE["ia2"], STYLE["sft"], STYLE["ia2-sft"]]
    for (name, (steps, values)), (colour, marker) in zip(lines.items(), styles):
        axis.plot(steps, values, color=colour, marker=marker, markersize=4, label=name)
    axis.set(xlabel="training step", ylabel=ylabel, title=title)
    axis.legend()
    return figure

def loss_by_layer(before, after):
    """The IA2 loss of each layer before and after training: two lists of L numbers, on a linear axis."""
    figure, (axis,) = panels(width=8)
    layers = np.arange(1, len(before) + 1)
    axis.bar(layers - 0.2, before, 0.4, color=STYLE["base"][0], label=f"base: {sum(before):.3g} in all")
    axis.bar(layers + 0.2, after, 0.4, color=STYLE["ia2"][0], label=f"after IA2: {sum(after):.3g} in all")
    last = sum(before[-len(before) // 3:]) / sum(before)
    axis.set(xlabel="layer", ylabel="mean squared difference",
             title=f"The last third of the layers holds {last:.0%} of the loss")
    axis.legend()
    return figure

def clouds(points, title=""):
    """Activations in two dimensions, a panel a group: `points` is {panel: {method: (N, 2)}}."""
    figure, axes = panels(len(points), 3.6, 3.8, sharex=True, sharey=True)
    for axis, (name, groups) in zip(axes, points.items()):
        for method, values in groups.items():
            colour, marker = STYLE[method]
            axis.scatter(*np.asarray(values).T, s=14, alpha=0.6, color=colour, marker=marker, label=method)
        axis.set(title=name, xlabel="first component")
    axes[0].set_ylabel("second component")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)
    figure.suptitle(title, fontsize="medium")
    return figure

def save_all(groups, folder):
    """Write the pictures of groups of rows, each of one test and setting, as PNG; their paths."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for found in groups:
        first, methods = found[0], [m for m in STYLE if any(row["method"] == m for row in found)]
        title = f"{first['dataset']} to {first['eval_dataset']}, n = {first['n']}, {first['model']}"
        name = re.sub(r"[^A-Za-z0-9.]+", "-", title)
        pictures = {"sets": set_by_set(found, title)}
        if "asim_layers" in first:
            lists = {m: [row["asim_layers"] for row in found if row["method"] == m] for m in methods}
            pictures["layers"] = asim_by_layer({m: np.mean(lists[m], axis=0).tolist() for m in methods})
        for kind, figure in pictures.items():
            paths.append(Path(folder, f"{name}-{len(paths)}-{kind}.png"))
            figure.savefig(paths[-1], dpi=100)
    return paths
