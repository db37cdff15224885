"""Rows of data sets: local .jsonl and .csv files, the Hugging Face hub, and bundled snippets.

A row is a dict in the fields of its source. `sources/tasks.py` turns rows into items.
"""

import csv
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.cache import cached, download, read_member
from support.cli import UserError, log
from support.hub import ANSWER_SECONDS, DISK_ERRORS, REFUSALS, http_status, within_seconds

PARTS = ("train", "test")


@dataclass(frozen=True)
class Item:
    """A row before it is worded: the text to judge or answer, and what is right."""

    text: str
    label: int | None = None  # the number of the label
    answer: str | None = None  # of free text
    options: tuple[str, ...] = ()  # of multiple choice, in the order of the labels


@dataclass(frozen=True)
class Rows:
    """The numbered rows of both parts, and where they are from."""

    parts: dict[str, list[tuple[int, dict]]]  # "train" and "test"
    places: dict[str, str]  # what to name in a message about a row
    source: str


class BadRow(Exception):
    """What is wrong with one row; the reader adds where it stands."""


class NoHub(UserError):
    """The hub is out of reach and nothing is cached."""


# ---- fields --------------------------------------------------------------------------------------


class CsvRow(dict):
    """A row whose values are all text."""


def field(row: dict, name: str, kind: type = str):
    """The field `name` of a row, of the type `kind`. Raises BadRow where it is not there.

    In CSV, numbers, truth values and lists are read from their text.
    """
    value = row.get(name) if isinstance(row, dict) else None
    if isinstance(row, CsvRow) and kind is not str and value:
        value = from_text(value, kind)
    if value is None or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        have = "it is no JSON object"
        if isinstance(row, dict):
            have = f"it has {', '.join(str(key) for key in row)}"
        raise BadRow(f"the row has no field {name!r} of type {kind.__name__} ({have})")
    return value


def from_text(text: str, kind: type):
    """The value that a CSV field tells, or None."""
    try:
        value = json.loads(text.lower() if kind is bool else text)
    except ValueError:
        return None
    if kind is float and type(value) is int:
        return float(value)
    return value


# ---- local files ---------------------------------------------------------------------------------


def read_folder(folder: Path) -> Rows:
    """The rows of train.jsonl and test.jsonl, or .csv, in a folder.

    Raises UserError where one is not there, or names file and line of what is wrong.
    """
    parts = {}
    places = {}
    for part in PARTS:
        path = folder / f"{part}.jsonl"
        if not path.exists():
            path = path.with_suffix(".csv")
        if not path.exists():
            raise UserError(f"{folder} has no {part}.jsonl or {part}.csv; check the folder's name")
        parts[part] = read_csv(path) if path.suffix == ".csv" else read_jsonl(path)
        places[part] = str(path)
    return Rows(parts, places, f"folder:{folder.name}")


def read_text(path: Path) -> str:
    """A file's text. Raises UserError with the line that is not UTF-8."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise bad_line(path, line, "this is not UTF-8; save the file as UTF-8") from None


def bad_line(path: Path, line: int, problem: str) -> UserError:
    return UserError(f"{path}, line {line}: {problem}")


def read_jsonl(path: Path) -> list[tuple[int, dict]]:
    """(line, row) of a file of one JSON object a line; blank lines are passed over."""
    rows = []
    for line, content in enumerate(read_text(path).split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            problem = "half of a surrogate pair (\\ud800 to \\udfff) is no character"
            raise bad_line(path, line, f"{problem}; write the whole character") from None
        except (ValueError, RecursionError) as error:
            problem = f"this is not a JSON object: {error}; write one object a line"
            raise bad_line(path, line, problem) from None
        rows.append((line, row))
    return rows


def read_csv(path: Path) -> list[tuple[int, dict]]:
    """(line, row) of a CSV file with a header."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows = []
    header = None
    try:
        for values in reader:
            if not values:
                continue
            if header is None:
                header = values
                check_header(path, header)
                continue
            check_width(path, reader.line_num, header, values)
            # Without a value a field is missing; beyond the header there are empty ones only.
            named = [pair for pair in zip(header, values) if pair[0]]
            rows.append((reader.line_num, CsvRow(named)))
    except csv.Error as error:
        problem = f"this is not CSV ({error}); fix the line"
        raise bad_line(path, reader.line_num, problem) from None
    return rows


def check_header(path: Path, header: list[str]) -> None:
    """Raise UserError for a column that is named twice."""
    for name, count in Counter(header).items():
        if name and count > 1:
            raise bad_line(path, 1, f"the column {name!r} is there {count} times; keep one of them")


def check_width(path: Path, line: int, header: list[str], values: list[str]) -> None:
    """Raise UserError for values without a column; empty ones at the end are fine."""
    width = len(header)
    while width and not header[width - 1]:  # a header may end in commas
        width -= 1
    if any(value.strip() for value in values[width:]):
        problem = "the row has more fields than in the header; put quotes around one with commas"
        raise bad_line(path, line, problem)


# ---- bundled snippets ----------------------------------------------------------------------------

SNIPPETS_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SNIPPETS_FOLDER = "hutto_ICWSM_2014"


def read_snippets(file: str) -> Rows:
    """The rated snippets in one of the bundled files: rows of `text` and `rating`, in one part."""
    path = cached("rated-snippets", unpack_snippets) / file
    rows = []
    for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), start=1):
        _, rating, text = line.split("\t", 2)
        rows.append((number, {"text": text, "rating": float(rating)}))
    places = dict.fromkeys(PARTS, str(path))
    return Rows({"train": rows, "test": []}, places, "pypi:vaderSentiment==3.3.2")


def unpack_snippets(folder: Path) -> None:
    """Put the bundled rated snippets, an archive inside an archive, into `folder`."""
    with tarfile.open(download("vaderSentiment", folder)) as outer:
        inner = io.BytesIO(read_member(outer.extractfile(SNIPPETS_ARCHIVE), 2**24))
        with tarfile.open(fileobj=inner) as archive:
            for member in archive.getmembers():
                path = Path(member.name)
                is_ratings = path.name.endswith("_GroundTruth.txt")
                if path.parent.name == SNIPPETS_FOLDER and is_ratings:
                    content = read_member(archive.extractfile(member), 2**24)
                    (folder / path.name).write_bytes(content)
    for file in folder.glob("*.tar.gz"):
        file.unlink()


# ---- the hub -------------------------------------------------------------------------------------

CONVERTED = "refs/convert/parquet"  # the hub's own conversion, where a repository holds a script


@dataclass(frozen=True)
class Hub:
    """Where rows are on the Hugging Face hub; `files` is a path pattern in the converted branch."""

    repo: str
    config: str | None = None
    train: str = "train"
    test: str = "test"
    files: str | None = None

    @property
    def revision(self) -> str | None:
        return CONVERTED if self.files else None

    @property
    def splits(self) -> dict[str, str]:
        return {"train": self.train, "test": self.test}


def read_hub(name: str, hub: Hub, without_hub: list[str]) -> Rows:
    """The rows of the task `name` from the hub, or from what this machine keeps of it.

    Raises NoHub, within 5 seconds if the hub does not answer, where there is neither; it names the
    tasks `without_hub`. Raises UserError where the hub refuses the data set, or it cannot be read.
    """
    commit = newest_commit(hub)
    cached_rows = read_cached(hub)
    if commit is not None:
        if cached_rows is not None and cached_rows.source == source_of(hub, commit):
            return cached_rows
        try:
            return rows_at(hub, commit)
        except Exception as error:  # datasets, pyarrow and httpx have classes of their own
            problem = what_went_wrong(hub, error)
        if problem is not None:
            raise UserError(problem)
    if cached_rows is None:
        raise no_hub(name, without_hub, broke_off=commit is not None)
    used = cached_rows.source.removeprefix("hub:")
    log(f"warning: the hub cannot be reached; using the cached {used}")
    return cached_rows


def read_cached(hub: Hub) -> Rows | None:
    """The rows that this machine keeps of a data set; None if they are not all there."""
    try:
        return rows_at(hub, None)
    except Exception:  # each library has classes of its own for what is not there
        return None


def rows_at(hub: Hub, commit: str | None) -> Rows:
    """The rows of a data set at its newest commit, or with None those that are cached."""
    read = read_converted if hub.files else read_dataset
    parts, kept = read(hub, commit)
    places = {part: f"{hub.repo} ({part})" for part in PARTS}
    return Rows(parts, places, source_of(hub, kept))


def source_of(hub: Hub, commit: str) -> str:
    return f"hub:{hub.repo}@{commit[:12]}"


def newest_commit(hub: Hub) -> str | None:
    """The newest commit of a data set, None where the hub cannot be reached.

    Raises UserError where it refuses: the data set is gated, gone, or has another name.
    """
    from huggingface_hub import HfApi

    def ask():
        api = HfApi()
        return api.dataset_info(hub.repo, revision=hub.revision, timeout=ANSWER_SECONDS).sha

    try:
        return within_seconds(ask)
    except Exception as error:  # no network, no name server, a proxy in the way, offline mode
        status = http_status(error)
    if status == 404:
        raise UserError(
            f"the hub has no {hub.repo} any more (404); use --data-dir with local copies"
        )
    if status in REFUSALS:
        raise UserError(f"the hub refuses {hub.repo} ({status}); {ACCEPT}")
    return None


ACCEPT = (
    "accept its terms on its page of the hub and run `hf auth login`, or use --data-dir with local "
    "copies"
)


def what_went_wrong(hub: Hub, error: Exception) -> str | None:
    """A sentence on why a data set that the hub has cannot be loaded; None if the way to the hub
    broke.
    """
    import httpx2  # huggingface_hub's
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    broken_way = (httpx2.TransportError, ConnectionError, TimeoutError)
    start = f"cannot load {hub.repo} from the hub"
    errors = chain(error)
    for each in errors:
        if isinstance(each, RemoteEntryNotFoundError):
            break  # a file that need not be there; `datasets` went on after that
        status = getattr(getattr(each, "response", None), "status_code", None)
        if status in REFUSALS or isinstance(each, DatasetNotFoundError):
            return f"{start}, which refuses its files ({status or 'gated'}); {ACCEPT}"
        if status is not None or isinstance(each, broken_way):
            return None
        if isinstance(each, OSError) and each.errno in DISK_ERRORS:
            return f"{start} ({each.strerror}); make room or set HF_HOME to another folder"
    if any(isinstance(each, LocalEntryNotFoundError) for each in errors):
        return None
    lines = str(error).splitlines() or [type(error).__name__]
    return f"{start} ({lines[0]}); use --data-dir with local copies"


def chain(error: BaseException | None) -> list[BaseException]:
    """An error and those that led to it, also where a library hides them (`from None`)."""
    errors = []
    while error is not None:
        errors.append(error)
        error = error.__cause__ or error.__context__
    return errors


def no_hub(name: str, without_hub: list[str], broke_off: bool) -> NoHub:
    problem = f"the hub cannot be reached for {name} and it is not cached; check the network"
    if broke_off:
        problem = (
            f"the hub cannot be reached for all of {name} and it is not cached; run the same "
            "command again, finished files are kept"
        )
    return NoHub(
        f"{problem}, or give local copies with --data-dir, or use one of {', '.join(without_hub)}, "
        "which need no hub"
    )


def read_converted(hub: Hub, commit: str | None) -> tuple[dict, str]:
    """Rows by part from parquet files of the converted branch, and their commit.

    The files stay in the hub's own cache, where they are found again without the hub.
    """
    import pyarrow.parquet
    from huggingface_hub import snapshot_download

    patterns = {part: hub.files.format(split=split) for part, split in hub.splits.items()}
    options = {"repo_type": "dataset", "allow_patterns": list(patterns.values())}
    if commit is not None:
        snapshot_download(hub.repo, revision=commit, **options)
    # By the branch's name only now: without the hub it stands for the last commit that was asked
    # for so, and that is whole.
    offline = commit is None
    branch = snapshot_download(hub.repo, revision=CONVERTED, local_files_only=offline, **options)
    folder = Path(branch)
    parts = {}
    for part, pattern in patterns.items():
        rows = []
        files = sorted(folder.glob(pattern))
        if not files:
            raise FileNotFoundError(f"there is no {pattern}")
        for file in files:
            rows += pyarrow.parquet.read_table(file).to_pylist()
        parts[part] = list(enumerate(rows))
    return parts, folder.name


def read_dataset(hub: Hub, commit: str | None) -> tuple[dict, str]:
    """Rows by part through the `datasets` library, which keeps them, and their commit."""
    import datasets  # slow to import, and most runs do not need it

    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    with libraries_offline(commit is None):
        loaded = datasets.load_dataset(hub.repo, hub.config, revision=commit)
    parts = {}
    for part, split in hub.splits.items():
        parts[part] = list(enumerate(loaded[split]))
    # The library falls back on older rows where it cannot read those of the commit it is told.
    kept = cached_commit(loaded[hub.train])
    if commit is not None and kept != commit:
        log(f"warning: {hub.repo} cannot be read; using what is cached of it, commit {kept[:12]}")
    return parts, kept


@contextmanager
def libraries_offline(offline: bool) -> Iterator[None]:
    """Inside the block, the libraries look into their caches only, if `offline`: they would ask a
    hub that is out of reach for half a minute.
    """
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if offline:
        datasets.config.HF_HUB_OFFLINE = True
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def cached_commit(split) -> str:
    """The commit of a cached data set: the library keeps each in a folder of that name."""
    for file in split.cache_files:
        folder = Path(file["filename"]).parent.name
        if re.fullmatch(r"[0-9a-f]{40}", folder):
            return folder
    return "cached"
