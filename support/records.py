"""Results: rows in a file, each written as soon as it is there, and tables of them."""

import functools
import hashlib
import json
import operator
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock

from support.cache import new_folder, remove_leftovers, write_whole
from support.cli import UserError

STARTED = time.perf_counter()  # near enough to the start of the command

# ---- rows on disk --------------------------------------------------------------------------------

LOCK = ".results.jsonl.lock"  # of a folder that processes share: one may replace what another reads
TRAINING_FILE = "training.json"  # beside an adapter: how it was trained
NEEDED = ("run", "method", "model", "dataset", "n", "set", "eval_dataset", "test_data", "accuracy")
UNHASHED = ("method", "train_labels", "dev_labels", "machine")  # implied by others, or no setting

# What makes a result the same result: its run, and what it was tested on.
row_key = operator.itemgetter("run", "eval_dataset", "test_data")


def make_out(folder: str | Path) -> None:
    """Make the folder for results before anything long starts.

    Raises UserError if it cannot be written, or holds a results file that cannot be read.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}); give another --out"
        ) from None
    path = Path(folder, "results.jsonl")
    if path.is_dir():
        raise UserError(f"{path} is a folder and not a file of results; give another --out")
    read_rows(path)


def read_rows(path: str | Path) -> list[dict]:
    """The rows of a results file, none twice; [] where there is no file.

    A last line that was cut by a full disk or a killed process is passed over. Raises UserError for
    any other line that is no row.
    """
    rows = {}
    for number, row in read_lines(path):
        problem = problem_of(row)
        if problem:
            raise UserError(
                f"{path}, line {number}: this is not a result ({problem}); restore the file with "
                "one result a line, or use another --out"
            )
        rows.setdefault(row_key(row), row)
    return list(rows.values())


def read_lines(path: str | Path) -> Iterator[tuple[int, object]]:
    """(number, value) of each line of JSON in a file, None for a line that is no JSON.

    Blank lines are passed over, and a last line that is cut; a file that is not there has none.
    """
    if not Path(path).exists():
        return
    lines = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            if number == len(lines) and is_cut(line, error):
                continue
            value = None
        yield number, value


def is_cut(line: bytes, error: ValueError) -> bool:
    """Whether a line that is no JSON is the beginning of a row, and not one that was spoiled.

    JSON that ends too early is wrong at its end: in a text, or in the last name or number.
    """
    if not line.startswith(b"{") or not isinstance(error, json.JSONDecodeError):
        return False
    in_text = error.msg.startswith("Unterminated string")
    return in_text or re.fullmatch(r"[-+.\w]*", error.doc[error.pos :]) is not None


def problem_of(row) -> str | None:
    """Why something is no row, or None if it is one."""
    if row is None:
        return "it is not JSON"
    if not isinstance(row, dict):
        return f"it is a JSON {type(row).__name__} and no object"
    missing = [field for field in NEEDED if field not in row]
    if missing:
        return f"it has no {', '.join(missing)}"
    if not all(isinstance(value, str) for value in row_key(row)):
        return "run, eval_dataset and test_data are not texts"
    if type(row["n"]) is not int or type(row["set"]) is not int:
        return "n and set are not whole numbers"
    if not isinstance(row.get("lr"), (float, int, type(None))):
        return "lr is not a number"
    return None


def run_name(settings: dict) -> str:
    """`<run>/<method>`: a row's name and an adapter's folder, with a short hash of all settings."""
    hashed = {key: value for key, value in settings.items() if key not in UNHASHED}
    short = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:8]
    slug = re.sub(r"[^A-Za-z0-9]+", "-", settings["dataset"]).strip("-")
    slug = slug[-60:]  # a path may be longer than a name may
    rate = settings.get("lr")
    speed = f"-lr{rate:g}" if rate else ""
    return f"{slug}-n{settings['n']}-set{settings['set']}{speed}-{short}/{settings['method']}"


def digest(texts: Sequence) -> str:
    """A short sha256 of some texts, to tell in a row which data it saw."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def add_rows(
    out: str | Path,
    settings: dict,
    results: list[dict],
    command: str,
    training: dict | None = None,
    save: Callable[[Path], None] | None = None,
) -> list[dict]:
    """Write a row for each of `results` to `<out>/results.jsonl`, and save the adapter, in place of
    what the same run left there before.

    `settings` tell the run, each of `results` a test and its scores, `training` what the stages
    left; `save(folder)` writes the adapter. The file is written whole, or stays as it was.
    """
    run = run_name(settings)
    origin = made_by(run, command)
    training = {**(training or {}), **summary(training)}
    rows = [{**settings, **result, **training, **origin} for result in results]
    path = Path(out, "results.jsonl")
    with FileLock(Path(out, LOCK)):
        if save is not None:
            with new_folder(Path(out, run)) as folder:
                save(folder)
                text = json.dumps({**settings, **training})
                (folder / TRAINING_FILE).write_text(text + "\n", encoding="utf-8")
            remove_leftovers(Path(out, run))
        known = {row_key(row): row for row in read_rows(path)}
        known.update((row_key(row), row) for row in rows)
        write_rows(path, list(known.values()))
    return rows


def made_by(run: str, command: str) -> dict:
    """Which run, command and code made a row."""
    return {
        "run": run,
        "command": command,
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "commit": commit(),
        "threads": torch.get_num_threads(),
    }


def summary(training: dict | None) -> dict:
    """The steps and seconds of all stages, and the dev loss of the last one."""
    stages = (training or {}).get("stages")
    if not stages:
        return {}
    return {
        "dev_loss": stages[-1]["dev_loss"],
        "steps": sum(stage["steps"] for stage in stages),
        "seconds": sum(stage["seconds"] for stage in stages),
    }


def write_rows(path: Path, rows: list[dict]) -> None:
    """Replace a results file by one with these rows, whole or not at all."""
    lines = [json.dumps(row, allow_nan=False) + "\n" for row in rows]
    try:
        write_whole(path, "".join(lines).encode())
    except OSError as error:
        raise UserError(
            f"cannot write to {path} ({error.strerror}); make room and run the same command again: "
            "completed work is kept"
        ) from None


@functools.cache
def commit() -> str | None:
    """The commit of this code, with a + if its Python differs; None outside a git checkout.

    A sweep may write into a results folder that is committed, so other files do not count.
    """
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        name = git(root, "rev-parse", "--short", "HEAD")
        changed = git(root, "diff", "--name-only", "HEAD", "--", "*.py")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{name}+" if changed else name


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


# ---- text ----------------------------------------------------------------------------------------


def grid(lines: list[list[str]]) -> str:
    """Lists of texts as a Markdown table whose columns line up in a terminal too."""
    widths = [max(len(text) for text in column) for column in zip(*lines)]
    rule = ["-" * width for width in widths]
    rows = []
    for line in [lines[0], rule, *lines[1:]]:
        cells = [text.ljust(width) for text, width in zip(line, widths)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def percent(row: dict, field: str) -> str:
    return number(row, field, 1, 100)


def number(row: dict, field: str, digits: int = 3, factor: float = 1, sign: str = "") -> str:
    """A figure of a row as text, a dash where the row has none."""
    value = row.get(field)
    return "-" if value is None else f"{factor * value:{sign}.{digits}f}"


def cells(row: dict) -> dict[str, str]:
    """What the table shows of a row, by the head of the column."""
    shown = {"accuracy %": percent(row, "accuracy")}
    if "nll" in row:
        shown["among labels %"] = percent(row, "accuracy_among_labels")
        shown["NLL"] = number(row, "nll")
        shown["ECE (floor)"] = f"{number(row, 'ece')} ({number(row, 'ece_floor')})"
        shown["gap"] = number(row, "gap", sign="+")
    if "asim" in row:
        shown["asim"] = number(row, "asim")
        shown["centred"] = number(row, "asim_centred")
    return shown


def score_grid(rows: list[dict]) -> str:
    """A line a method, columns by test, a star at those out of domain."""
    tests = list(dict.fromkeys(row["eval_dataset"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    shown = {(row["method"], row["eval_dataset"]): cells(row) for row in rows}
    heads = ["method"]
    for test in tests:
        star = "" if test == rows[0]["dataset"] else "*"
        name = f"{test}{star} " if len(tests) > 1 else ""
        heads += [f"{name}{head}" for head in shown[methods[0], test]]
    lines = [heads]
    for method in methods:
        line = [method]
        for test in tests:
            line += shown[method, test].values()
        lines.append(line)
    return grid(lines)


def table(rows: list[dict]) -> str:
    """Rows of one few-shot set as text: what they are, and their scores."""
    first = rows[0]
    kind = f"{first['labels']} as labels" if first["labels"] else "free text"
    balanced = "balanced " if first["balanced"] else ""
    tests = {row["eval_dataset"]: row for row in rows}
    sizes = [f"{row['test']} test queries ({row['eval_source']})" for row in tests.values()]
    if len(tests) > 1:
        sizes = [f"{name}: {size}" for name, size in zip(tests, sizes)]
    head = (
        f"{first['dataset']}, n = {first['n']}, {balanced}set {first['set']}, {first['model']}; "
        f"{kind}; {'; '.join(sizes)}"
    )
    return f"{head}\n\n{score_grid(rows)}"


def show_samples(queries: list[tuple[str, str]], samples: dict[str, list[str]]) -> str:
    """The first queries (text, right response), and below each what every method answers."""
    width = max(len(method) for method in samples)
    count = min(len(answers) for answers in samples.values())
    lines = []
    for i in range(count):
        query, response = queries[i]
        lines.append(f"{query} -> {response.strip()}")
        for method, answers in samples.items():
            lines.append(f"    {method.ljust(width)}  {answers[i]}")
    return "\n".join(lines)


def key_values(rows: list[dict], memory: int) -> str:
    """Lines of `key: value` for scripts to read; `memory` is the peak in bytes."""
    lines = [
        f"seconds: {time.perf_counter() - STARTED:.1f}",
        f"peak_memory_gb: {memory / 1e9:.2f}",
    ]
    stages = {row["method"]: row["stages"] for row in rows if row.get("stages")}
    for method, path in stages.items():
        kept = [f"{stage['name']} {stage['kept_step']} of {stage['steps']}" for stage in path]
        lines.append(f"{method}_first_loss: {path[-1]['first_loss']:.4f}")
        lines.append(f"{method}_kept_steps: {', '.join(kept)}")
    return "\n".join(lines)
