"""pytest tests/lab/test_plots.py: pictures show all of their data, with labels that are true."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from samples import row

import metrics
from lab import plots, variants


def outside(figure):
    """What lies on or beyond the limits of its axis: values of lines, points and bars."""
    found = []
    for axis in figure.axes:
        limits = (sorted(axis.get_xlim()), sorted(axis.get_ylim()))
        for xs, ys in plotted(axis):
            for values, (low, high) in zip((xs, ys), limits):
                values = np.asarray(values, dtype=float)
                values = values[np.isfinite(values)]
                found += [value for value in values if not low < value < high]
    return found


def plotted(axis):
    """(xs, ys) of all that an axis shows in its own data coordinates."""
    for line in axis.lines:
        if line.get_transform() == axis.transData:  # not a line across the whole axis
            yield line.get_xdata(), line.get_ydata()
    for points in axis.collections:
        offsets = np.asarray(points.get_offsets())
        yield offsets[:, 0], offsets[:, 1]
    for bar in axis.patches:
        yield [bar.get_x(), bar.get_x() + bar.get_width()], [bar.get_y() + bar.get_height()]


def ticks_of(axis):
    """{name of a line of a forest: its few-shot sets' differences}"""
    ticks = {}
    first = axis.figure.axes[0]  # the others share its names
    names = [label.get_text() for label in first.get_yticklabels()]
    for line in axis.lines:
        if line.get_marker() == "|" and len(line.get_xdata()):  # not the legend's
            ticks[names[int(line.get_ydata()[0])]] = list(line.get_xdata())
    return ticks


def texts(figure):
    """All titles, labels and legends of a figure."""
    figure.canvas.draw()
    found = [figure.get_suptitle()]
    for axis in figure.axes:
        found += [axis.get_title(), axis.get_xlabel(), axis.get_ylabel()]
        found += [label.get_text() for label in axis.get_yticklabels()]
    for legend in figure.legends:
        found += [text.get_text() for text in legend.get_texts()]
    return "\n".join(found)


def set_rows():
    """Five methods on three few-shot sets at two rates; base has none."""
    rows = []
    for method in ("base", "icl", "sft", "ia2", "ia2-sft"):
        for i in range(3):
            for lr in (1e-4, 1e-3) if method not in ("base", "icl") else (None,):
                accuracy = 0.0 if method == "base" else 0.4 + 0.1 * i
                accuracy += 0.4 if method == "ia2-sft" else 0
                labels = ["no"] * (i + 1) + ["yes"] * (3 - i)
                rows.append(
                    row(
                        method=method,
                        set=i,
                        lr=lr,
                        accuracy=accuracy,
                        train_labels=labels,
                        asim_layers=[0.99, -0.18, 0.5],
                    )
                )
    return rows


def outcome(right, chosen, confidence):
    return [right, chosen, chosen, confidence, [confidence, 1 - confidence]]


FIGURES = {
    "sets": lambda: plots.set_by_set(set_rows(), "title"),
    "layers": lambda: plots.asim_by_layer({"base": [0.9, -0.18], "icl": [1.0, 1.0]}),
    "reliability": lambda: plots.reliability(
        {"sft": [outcome(0, 0, 1.0), outcome(1, 0, 1.0)], "icl": [outcome(0, 0, 0.5)]}, "title"
    ),
    "forest": lambda: plots.forest({"a": [-20.0, 60.0], "b": [5.0]}, "points", "title"),
    "curves": lambda: plots.curves({"ia2": ([2, 4], [300.0, 0.1])}, "loss", "title"),
    "losses": lambda: plots.loss_by_layer([1, 2, 6], [1, 1, 2]),
    "clouds": lambda: plots.clouds({"a": {"base": [[0, 1], [2, 3]], "icl": [[-9, 9]]}}, "title"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off(name):
    figure = FIGURES[name]()
    assert outside(figure) == []
    assert figure.axes[0].has_data()
    for axis in figure.axes:
        assert axis.get_legend() is None  # legends stand below, where they hide nothing


@pytest.mark.parametrize("kind", ["line", "points", "bars"])
def test_a_value_on_the_edge_would_be_seen(kind):
    """The check above can fail: limits that end where the data do cut a marker in half."""
    figure = Figure()
    axis = figure.subplots()
    draw = {"line": axis.plot, "points": axis.scatter, "bars": axis.bar}[kind]
    draw([1, 2], [1.0, -0.18])
    axis.set_ylim(-1, 2)
    axis.set_xlim(0, 3)
    assert outside(figure) == []
    axis.set_ylim(-0.18, 1.03)
    assert outside(figure) == pytest.approx([-0.18])


def test_the_sets_stand_with_their_labels_and_their_difference():
    figure = plots.set_by_set(set_rows(), "movies")
    text = texts(figure)
    assert "set 0: 1 x no, 3 x yes" in text
    assert "set 2: 3 x no, 1 x yes" in text
    for rate in ("1e-4", "1e-3"):
        assert f"at {rate}\nia2-sft minus sft: +40.0 [+40.0, +40.0]" in text
    for method in ("base", "icl", "sft", "ia2", "ia2-sft"):
        assert method in text.splitlines()


def test_a_set_is_a_line_from_sft_to_ia2_then_sft():
    figure = plots.set_by_set([each for each in set_rows() if each["lr"] in (None, 1e-4)], "t")
    (axis,) = figure.axes
    joined = [line for line in axis.lines if line.get_color() == "#BBBBBB"]
    ends = [sorted(line.get_xdata()) for line in joined]
    means = [[50, 90]]
    assert np.allclose(ends, [[40, 80], [50, 90], [60, 100], *means])


def test_the_mean_is_that_of_the_sets_which_all_methods_have():
    rows = [each for each in set_rows() if each["lr"] in (None, 1e-4)]
    lacking = [each for each in rows if (each["set"], each["method"]) != (2, "ia2-sft")]
    (axis,) = plots.set_by_set(lacking, "t").figure.axes
    joined = [line for line in axis.lines if line.get_color() == "#BBBBBB"]
    assert np.allclose(sorted(joined[-1].get_xdata()), [45, 85])  # of sets 0 and 1


def test_reliability_has_each_methods_own_floor():
    rng = np.random.default_rng(0)
    soft = [outcome(int(rng.random() < 0.3), 0, 0.7) for _ in range(100)]
    sharp = [outcome(int(rng.random() < 0.3), 0, 1.0) for _ in range(100)]
    figure = plots.reliability({"icl": soft, "sft": sharp}, "title")
    titles = [axis.get_title() for axis in figure.axes]
    floor, _ = metrics.ece_floor(np.full(100, 0.7))
    assert f"its floor {floor:.2f}" in titles[0]
    assert "its floor 0.00" in titles[1]
    right = np.mean([each[0] == 0 for each in sharp])
    assert f"sft: ECE {1 - right:.2f}" in titles[1]
    assert "10% of the queries" in texts(figure)


def test_confidence_is_that_of_the_label_that_was_chosen():
    figure = plots.reliability({"sft": [[1, 1, None, 0.2, [0.1, 0.9]]]}, "title")
    points = figure.axes[0].collections[0].get_offsets()
    assert np.asarray(points).tolist() == [[0.9, 1.0]]


def test_a_forest_has_a_line_a_difference_with_its_interval():
    values = [3.0, 5.0, 10.0]
    figure = plots.forest({"one": values, "two": [1.0]}, "points", "title")
    axis = figure.axes[0]
    found = metrics.t_interval(values)
    bounds = [list(line.get_xdata()) for line in axis.lines if len(line.get_xdata()) == 2]
    assert [found.low, found.high] in bounds
    assert "one (3)\ntwo (1)" in texts(figure)


@pytest.mark.parametrize("name", ["costs $5", "$x$", "a_$b_c$"])
def test_dollars_are_dollars(name, tmp_path):
    figure = plots.set_by_set([row(train_labels=[name])], name)
    figure.savefig(tmp_path / "picture.png")
    assert figure.get_suptitle() == name.replace("$", r"\$")  # which is drawn as one
    plots.forest({name: [1.0, 2.0]}, "points", name).savefig(tmp_path / "other.png")


def test_a_file_is_drawn_whole(tmp_path):
    rows = set_rows()
    for each in rows:
        each["outcomes"] = [outcome(0, 0, 0.9), outcome(1, 0, 0.6)]
    planned = [{**each, "lr": 3e-4} for each in rows if each["lr"] == 1e-4]
    paths = plots.save_all(rows + planned, tmp_path)
    names = "\n".join(path.name for path in paths)
    for kind in ("sets", "layers", "reliability", "differences"):
        assert kind in names
    assert all(path.stat().st_size > 5000 for path in paths)


def test_a_folder_with_a_long_name_is_drawn_under_a_usual_one(tmp_path):
    rows = [{**each, "dataset": "/" + "long-name/" * 40} for each in set_rows()]
    for path in plots.save_all(rows, tmp_path):
        assert len(path.name) < 130 and not path.name.startswith("-")


def test_a_long_title_stays_inside_its_picture():
    layers = {"sft": [0.1, 0.2], "ia2": [0.3, 0.4]}
    figure = plots.asim_by_layer(layers, "words " * 60)
    figure.savefig(io.BytesIO())
    [axis] = figure.axes
    box = axis.title.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    ticks = [tick for tick in axis.get_xticks() if 1 <= tick <= 2]
    assert ticks == [1, 2], "layers are whole numbers"


def test_every_method_of_the_lab_has_a_look_of_its_own():
    looks = [plots.style(method) for method in ("base", "icl", *variants.METHODS)]
    assert len(set(looks)) == len(looks) and plots.OTHER_STYLE not in looks


def test_what_was_trained_in_other_ways_is_never_averaged(tmp_path):
    rows = [row(method="icl", lr=None, set=i, accuracy=0.5) for i in range(2)]
    for keep, accuracy in (("best", 0.9), ("last", 0.3)):
        for method in ("sft", "ia2-sft"):
            rows += [row(method=method, set=i, keep=keep, accuracy=accuracy) for i in range(2)]
    rows.append(row(method="ia2-sft", keep="best", targets="unlabelled", accuracy=0.1))
    titles = dict(plots.picture_rows(rows))
    best, last = titles.values()
    assert [title.partition("keep ")[2] for title in titles] == ["best", "last"]
    assert len(best) == 7 and len(last) == 6  # icl is in both
    axis = plots.set_by_set(best, "title").axes[0]
    shown = {line.get_label(): list(line.get_xdata()) for line in axis.lines}
    assert shown["sft"] == shown["ia2-sft"] == [90, 90, 90]
    assert shown["ia2-sft, targets unlabelled"] == [10, 10]
    assert len(plots.save_all(rows, tmp_path)) >= 2


def test_six_panels_stand_in_two_lines():
    each = [outcome(0, 0, 0.9), outcome(1, 0, 0.6)]
    figure = plots.reliability({name: each for name in ("a", "b", "c", "d")}, "title")
    places = [axis.get_subplotspec().rowspan.start for axis in figure.axes]
    assert places == [0, 0, 0, 1]


def test_rows_without_layers_or_outcomes_are_drawn_without_them(tmp_path):
    rows = [row(method=method, set=i) for method in ("sft", "ia2-sft") for i in range(2)]
    assert len(plots.save_all(rows, tmp_path)) == 2


def test_primers_are_drawn_against_ia2_then_sft():
    rows = []
    scores = {"base": 0.1, "icl": 0.6, "sft": 0.5, "ia2-sft": 0.7, "mean-sft": 0.65}
    for test, better in (("movies", 0.0), ("amazon", 0.1)):
        for method, accuracy in scores.items():
            for number in range(3):
                accuracy += better * number if method == "mean-sft" else 0
                lr = None if method in ("base", "icl") else 3e-4
                rows.append(
                    row(method=method, lr=lr, set=number, eval_dataset=test, accuracy=accuracy)
                )
    [(name, figure)] = plots.against_priming(rows).items()
    assert "primers" in name
    ticks = ticks_of(figure.axes[0])
    assert ticks["icl (3)"] == pytest.approx([-10, -10, -10])
    assert ticks["sft (3)"] == pytest.approx([-20, -20, -20])
    assert ticks["mean-sft (3)"] == pytest.approx([-5, 0, 10])
    assert set(ticks) == {"icl (3)", "sft (3)", "mean-sft (3)"}
    assert plots.against_priming(set_rows()) == {}, "no primer but IA2"


def test_settings_of_one_name_have_a_line_each_in_the_forest():
    rows = [row(method=method, lr=3e-4, accuracy=0.5) for method in ("sft", "ia2-sft")]
    other = [{**each, "dtype": "float32", "accuracy": 0.1 * i} for i, each in enumerate(rows)]
    former = [{**each, "procedure": "1"} for each in rows]
    lines = plots.forest_lines(former + rows + other)
    assert list(lines) == [
        "m, d, words, n = 4, procedure 1, 3e-4",
        "m, d, words, n = 4, 3e-4",
        "m, d, words, n = 4, dtype float32, 3e-4",
    ]
    assert list(lines.values())[-1] == pytest.approx([10])


def test_methods_are_drawn_beside_base_by_three_measures():
    rows = []
    for method, shift in (("base", 0.0), ("icl", 0.1), ("sft", -0.2)):
        for number in range(3):
            lr = 3e-4 if method == "sft" else None
            scores = {
                "accuracy_among_labels": 0.5 + shift,
                "accuracy_batch_calibrated": 0.7 + shift / 2,
                "label_auroc": 0.6 + shift * number,
            }
            rows.append(row(method=method, lr=lr, set=number, **scores))
    [figure] = plots.against_base(rows).values()
    expected = [
        {"icl (3)": [10, 10, 10], "sft (3)": [-20, -20, -20]},
        {"icl (3)": [5, 5, 5], "sft (3)": [-10, -10, -10]},
        {"icl (3)": [0, 10, 20], "sft (3)": [0, -20, -40]},
    ]
    for axis, ticks in zip(figure.axes, expected, strict=True):
        shown = ticks_of(axis)
        assert list(shown) == list(ticks)
        for method, values in ticks.items():
            assert shown[method] == pytest.approx(values)
    unmeasured = [{**each, "label_auroc": None} for each in rows]
    assert plots.against_base(unmeasured) == {}
