"""Records of `lab.anatomy`: how they are read, averaged over few-shot sets, and shown."""

import json
import math
import statistics
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import metrics
from lab.cells import interval
from lab.rows import SETTING, TEST, apart_from, group, is_number, setting
from support import records
from support.cache import write_whole
from support.cli import UserError

FILE = "anatomy.jsonl"
METHODS = ("base", "icl", "steer", "exact")
TEACHERS = ("flipped", "foreign", "shuffled")
TEACHER_SCORES = ("accuracy", "agreement", "asim", "asim_centred")
PERCENT = ("accuracy", "accuracy_among_labels", "label_mass", "agreement")  # shown as such

# ---- reading -------------------------------------------------------------------------------------

NEEDED = ("run", "model", "dataset", "n", "set", "eval_dataset", "test_data", "share_layers")


def read_records(path: str | Path) -> list[dict]:
    """The records of a file, none twice; [] where there is no file.

    A last line that a killed process left cut is passed over. Raises UserError for any other line
    that is no record.
    """
    found = {}
    for number, record in records.read_lines(path):
        if not isinstance(record, dict) or any(field not in record for field in NEEDED):
            raise UserError(
                f"{path}, line {number}: this is no record of lab.anatomy; restore the file with "
                "one record a line, or use another --out"
            )
        found.setdefault(records.row_key(record), record)
    return list(found.values())


def read_files(paths: list[str]) -> list[dict]:
    """The records of several files, none twice. Raises UserError for a file that is not there."""
    found = {}
    for path in paths:
        if not Path(path).exists():
            raise UserError(f"there is no file {path}; give the path of an {FILE}")
        for record in read_records(path):
            found.setdefault(records.row_key(record), record)
    return list(found.values())


# ---- tables --------------------------------------------------------------------------------------

GROUPED = (*SETTING, "foreign", *TEST)  # records that differ in any of it are never averaged
NAMED = ("model", "labels", "dataset", "eval_dataset", "n")  # what a line is called by


@dataclass(frozen=True)
class Group:
    """The records of several few-shot sets, otherwise alike."""

    records: list[dict]
    name: str  # the model and how labels are written, and what else tells it from others
    test: str

    @property
    def n(self) -> int:
        return self.records[0]["n"]

    def start(self) -> list[str]:
        """The first cells of its lines."""
        return [self.name, self.test, str(self.n), str(len(self.records))]

    def values(self, *path: str) -> list:
        """A figure of each record, by the names that lead to it; None where it has none."""
        return [figure(record, path) for record in self.records]


START = ["model, labels", "test", "n", "sets"]


def figure(record: dict, path: tuple[str, ...]):
    value = record
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def groups_of(found: list[dict]) -> list[Group]:
    """Records by what they share. Raises UserError where two of them are one set's."""
    grouped = list(group(found, GROUPED).values())
    firsts = [same[0] for same in grouped]
    groups = []
    for same in grouped:
        first = same[0]
        if len({record["set"] for record in same}) < len(same):
            raise UserError(
                f"few-shot set numbers of {first['dataset']}, n = {first['n']}, {first['model']} "
                "stand for several few-shot sets (train_data); keep the records of one of them"
            )
        test = first["eval_dataset"]
        if test != first["dataset"]:
            test = f"{first['dataset']} to {test}"
        ordered = sorted(same, key=lambda record: record["set"])
        groups.append(Group(ordered, group_name(first, firsts), test))
    return groups


def group_name(first: dict, firsts: list[dict]) -> str:
    """The model and its labels, and the settings in which groups of one name differ."""
    names = [setting(first, field) for field in ("model", "labels")]
    alike = []
    for other in firsts:
        if all(setting(other, field) == setting(first, field) for field in NAMED):
            alike.append(other)
    return ", ".join([*names, *apart_from(first, alike, GROUPED)])


def tables(found: list[dict]) -> str:
    """All tables as Markdown: means over few-shot sets, with 95% t intervals."""
    if not found:
        return "There are no records yet."
    groups = groups_of(found)
    parts = [
        "Means over few-shot sets, with 95% t intervals.",
        "What the shift is made of. Share: of its square, by one vector a layer; of the constant "
        "split half, of `steer` by the training examples' vector. Cosine: of that vector with the "
        "test queries' mean shift.",
        records.grid(shift_lines(groups)),
        "What adding it does. `steer` adds the training examples' vector; `exact` the mean shift "
        "of the other half of the test queries, which no method may know.",
        records.grid(method_lines(groups)),
        "What of ICL's activations its demos and the query decide: cosines with ICL behind its "
        "own demos, raw and with each side's mean over the queries taken off; shuffled: with the "
        "next query's.",
        records.grid(teacher_lines(groups)),
    ]
    return "\n\n".join(parts)


def shift_lines(groups: list[Group]) -> list[list[str]]:
    names = {
        "share": "constant's share",
        "share_median": "median layer",
        "constant_asim": "asim of constant",
        "vector_share": "share of steer",
        "vector_cosine": "cosine of steer",
    }
    lines = [[*START, *names.values()]]
    for each in groups:
        lines.append([*each.start(), *(interval(each.values(name)) for name in names)])
    return lines


def method_lines(groups: list[Group]) -> list[list[str]]:
    heads = ("accuracy %", "among labels %", "label mass %", "NLL", "asim", "asim centred")
    fields = ("accuracy", "accuracy_among_labels", "label_mass", "nll", "asim", "asim_centred")
    lines = [[*START, "method", *heads, "accuracy minus icl's", "among labels minus base's"]]
    for each in groups:
        for method in METHODS:
            cells = score_cells(each, "methods", method, fields)
            cells.append(difference_cell(each, "accuracy", method, "icl"))
            cells.append(difference_cell(each, "accuracy_among_labels", method, "base"))
            lines.append([*each.start(), method, *cells])
    return lines


def difference_cell(each: Group, field: str, method: str, other: str) -> str:
    """A method's score minus another's, set by set, in points."""
    differences = []
    others = each.values("methods", other, field)
    for value, from_it in zip(each.values("methods", method, field), others):
        if is_number(value) and is_number(from_it):
            differences.append(value - from_it)
    return interval(differences, 100, 1, "+")


def teacher_lines(groups: list[Group]) -> list[list[str]]:
    lines = [[*START, "other side", "ICL's accuracy %", "same answer %", "cosine", "centred"]]
    for each in groups:
        for teacher in TEACHERS:
            cells = score_cells(each, "teachers", teacher, TEACHER_SCORES)
            lines.append([*each.start(), teacher, *cells])
    return lines


def score_cells(each: Group, part: str, name: str, fields: tuple[str, ...]) -> list[str]:
    """The scores `fields` of one name in a `part` of a group's records."""
    cells = []
    for field in fields:
        values = each.values(part, name, field)
        cells.append(interval(values, 100, 1) if field in PERCENT else interval(values))
    return cells


# ---- a summary for other programs ----------------------------------------------------------------

SUMMARY_SETTINGS = (*NAMED, "source", "eval_source", "balanced", "dtype", "foreign", "test")
SUMMARY_SCORES = ("accuracy", "label_mass", "nll", "asim", "asim_centred", "agreement")
SUMMARY_FIGURES = (
    ("share",),
    ("share_median",),
    ("constant_asim",),
    ("vector_share",),
    ("vector_cosine",),
    *(("methods", method, score) for method in METHODS for score in SUMMARY_SCORES),
    *(("teachers", teacher, score) for teacher in TEACHERS for score in TEACHER_SCORES),
)
SUMMARY_LAYERS = (
    ("share_layers",),
    ("vector_share_layers",),
    ("constant_asim_layers",),
    ("methods", "steer", "asim_centred_layers"),
    ("teachers", "flipped", "asim_centred_layers"),
    ("teachers", "foreign", "asim_centred_layers"),
)


def rounded(value, digits: int = 5):
    """Nested figures with fewer digits; None for what is not finite."""
    if isinstance(value, dict):
        return {name: rounded(inner, digits) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner, digits) for inner in value]
    if isinstance(value, float):
        return round(value, digits) if math.isfinite(value) else None
    return value


def summary(each: Group) -> dict:
    """A group's means with intervals, and its means by layer."""
    first = each.records[0]
    figures = {}
    for path in SUMMARY_FIGURES:
        values = [value for value in each.values(*path) if is_number(value)]
        if values:
            found = metrics.t_interval(values)
            figures[".".join(path)] = rounded([found.mean, found.low, found.high], 4)
    layers = {}
    for path in SUMMARY_LAYERS:
        means = mean_layers(each.values(*path))
        if means:
            layers[".".join(path)] = rounded(means, 3)
    return {
        **{field: first.get(field) for field in SUMMARY_SETTINGS},
        "sets": [record["set"] for record in each.records],
        "figures": figures,
        "layers": layers,
    }


def mean_layers(lists: list[list | None]) -> list[float]:
    """The mean of each layer over the records that have it, nan where none has; [] of none."""
    held = [values for values in lists if values]
    means = []
    for column in zip(*held):
        numbers = [value for value in column if is_number(value)]
        means.append(statistics.fmean(numbers) if numbers else math.nan)
    return means


def write_summary(groups: list[Group], path: str | Path) -> None:
    """One group a line, in JSON; a figure is its mean and the ends of its interval (null: one set).

    The file is written whole or not at all.
    """
    lines = []
    for each in groups:
        lines.append(json.dumps(summary(each), sort_keys=True, separators=(",", ":")))
    write_asked(path, ("[\n" + ",\n".join(lines) + "\n]\n").encode())


def write_asked(path: str | Path, content: bytes) -> None:
    """Write a file that was asked for. Raises UserError where it cannot be written."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise UserError(f"cannot write to {path} ({error.strerror}); give another path") from None


# ---- a picture -----------------------------------------------------------------------------------

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D", "#777777")
DASHES = ("-", "--", ":", "-.")  # after eight lines the colours come again, dashed
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def check_picture(path: str | None) -> None:
    """Raise UserError before anything long starts if the picture's name has another ending."""
    if path is not None and Path(path).suffix not in (".png", ".svg"):
        raise UserError(f"{path} is no name of a picture; use one that ends in .png or .svg")


def save_picture(groups: list[Group], path: str | Path) -> None:
    """Write the picture as PNG or SVG, by the path's ending; whole or not at all."""
    content = BytesIO()
    draw(groups).savefig(content, format=Path(path).suffix[1:], dpi=100)
    write_asked(path, content.getvalue())


def draw(groups: list[Group]):
    """The constant's share by layer, a panel for each n; beside them accuracy set by set."""
    from lab import plots  # matplotlib is slow to start

    sizes = sorted({each.n for each in groups})
    figure, axes = plots.panels(len(sizes) + 1, 5.0, 4.6)
    names = list(dict.fromkeys(line_name(each) for each in groups))
    every = [value for each in groups for value in mean_layers(each.values("share_layers"))]
    for axis, n in zip(axes, sizes):
        for each in groups:
            if each.n == n:
                draw_share(axis, each, names.index(line_name(each)))
        axis.set(xlabel="depth (layer / layers)", ylim=plots.spread(every, 0, 1))
        axis.set_title(f"n = {n}", fontsize="medium")
    axes[0].set_ylabel("constant's share of the squared shift")
    for each in groups:
        number = names.index(line_name(each))
        draw_accuracy(axes[-1], each, number, MARKERS[sizes.index(each.n) % len(MARKERS)])
    finish_accuracy(axes[-1], sizes)
    plots.legend_below(figure, 3)
    figure.suptitle("The constant's share of ICL's shift by layer; accuracy of steering and of ICL")
    return figure


def line_name(each: Group) -> str:
    return f"{each.name}: {each.test}".replace("$", r"\$")


def draw_share(axis, each: Group, number: int) -> None:
    """One line: the mean over few-shot sets."""
    layers = mean_layers(each.values("share_layers"))
    depths = [(i + 1) / len(layers) for i in range(len(layers))]
    axis.plot(
        depths,
        layers,
        DASHES[number // len(COLOURS) % len(DASHES)],
        color=COLOURS[number % len(COLOURS)],
        label=line_name(each),
    )


def draw_accuracy(axis, each: Group, number: int, marker: str) -> None:
    """A point for each few-shot set."""
    icl = [100 * value for value in each.values("methods", "icl", "accuracy")]
    steered = [100 * value for value in each.values("methods", "steer", "accuracy")]
    axis.plot(icl, steered, marker, color=COLOURS[number % len(COLOURS)], alpha=0.7)


def finish_accuracy(axis, sizes: list[int]) -> None:
    """The diagonal, on which steering is as good as ICL, and what the markers are."""
    axis.plot([0, 100], [0, 100], "--", color="#999999", linewidth=1.5, zorder=0)
    for i, n in enumerate(sizes):
        axis.plot([], [], MARKERS[i % len(MARKERS)], color="#444444", label=f"a set, n = {n}")
    axis.set(xlabel="accuracy % of ICL", ylabel="accuracy % of steer, no training")
    axis.set(xlim=(-4, 104), ylim=(-4, 104))
    axis.set_title("set by set", fontsize="medium")
