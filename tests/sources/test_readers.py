"""pytest tests/sources/test_readers.py: local files, and the hub's answers and caches."""

import io
import tarfile

import httpx2
import pandas
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from samples import ROWS

from sources import readers, tasks
from support.cli import UserError

# ---- local files ---------------------------------------------------------------------------------


def write(folder, part, text, kind="jsonl"):
    content = text if isinstance(text, bytes) else text.encode()
    (folder / f"{part}.{kind}").write_bytes(content)


def read(folder):
    return readers.read_folder(folder).parts["train"]


def test_rows_keep_their_line_numbers_and_blank_lines_are_passed_over(tmp_path):
    write(tmp_path, "train", b'\xef\xbb\xbf{"a": 1}\n\n  \n{"a": 2}\r\n')
    write(tmp_path, "test", "")
    assert read(tmp_path) == [(1, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    "text, message",
    [
        (b'{"a": 1}\n{"a": "caf\xe9"}\n', "line 2: this is not UTF-8; save the file as UTF-8"),
        ('{"a": NaN}\n', "line 1: this is not a JSON object: .*write one object a line"),
        ('{"a": 1e999}\n', "line 1: this is not a JSON object"),
        ("{broken\n", "line 1: this is not a JSON object: .*write one object a line"),
        ('{"a": "\\ud83d"}\n', "line 1: half of a surrogate pair"),
        ('{"a": 1}\n' + "[" * 100_000 + "\n", "line 2: this is not a JSON object"),
    ],
)
def test_broken_lines_are_named(text, message, tmp_path):
    write(tmp_path, "train", text)
    write(tmp_path, "test", "")
    with pytest.raises(UserError, match=f"train.jsonl, {message}"):
        read(tmp_path)


def test_csv_rows_are_texts_by_their_header(tmp_path):
    write(tmp_path, "train", 'query,response\n"a, b",yes\n\n"two\nlines",no,,\nshort\n', "csv")
    write(tmp_path, "test", "query,response\n", "csv")
    assert read(tmp_path) == [
        (2, {"query": "a, b", "response": "yes"}),
        (5, {"query": "two\nlines", "response": "no"}),
        (6, {"query": "short"}),
    ]


@pytest.mark.parametrize("end", ["", ",", ",,"])
@pytest.mark.parametrize("row, line", [("a,b,c", 3), ("a,b, ,d", 3), ('"two\nlines",b,c', 4)])
def test_fields_without_a_column_are_named_also_behind_a_header_that_ends_in_commas(
    end, row, line, tmp_path
):
    write(tmp_path, "train", f"query,response{end}\nx,yes{end}\n{row}\n", "csv")
    write(tmp_path, "test", "", "csv")
    message = f"train.csv, line {line}: the row has more fields than in the header; put quotes"
    with pytest.raises(UserError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("header", ["query,query,response", "a,response,b,response", "x,x,x"])
def test_a_column_that_is_named_twice_is_refused(header, tmp_path):
    write(tmp_path, "train", f"{header}\n1,2,3\n", "csv")
    write(tmp_path, "test", "", "csv")
    with pytest.raises(UserError, match=r"train.csv, line 1: the column .* is there \d times"):
        read(tmp_path)


def test_broken_csv_is_named(tmp_path):
    write(tmp_path, "train", 'query,response\na,"d"e\n', "csv")
    write(tmp_path, "test", "", "csv")
    with pytest.raises(UserError, match=r"train.csv, line \d: this is not CSV"):
        read(tmp_path)


@pytest.mark.parametrize(
    "text, kind, value",
    [
        ("7", int, 7),
        ("True", bool, True),
        ("FALSE", bool, False),
        ("2", float, 2.0),
        ('["a"]', list, ["a"]),
        ("1.5", int, None),
        ("yes", bool, None),
        ("", int, None),
    ],
)
def test_csv_fields_are_read_as_the_type_that_is_needed(text, kind, value):
    row = readers.CsvRow({"x": text})
    if value is None:
        with pytest.raises(readers.BadRow, match=f"no field 'x' of type {kind.__name__}"):
            readers.field(row, "x", kind)
    else:
        assert readers.field(row, "x", kind) == value


# ---- bundled snippets ----------------------------------------------------------------------------


def archive(files):
    """A .tar.gz with the given {name: bytes}, as bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_only_the_rated_snippets_are_taken_out_of_their_archives(tmp_path, monkeypatch):
    inner = {
        "hutto_ICWSM_2014/tweets_GroundTruth.txt": b"1\t2.5\tgood\n2\t-3\tbad\n",
        "hutto_ICWSM_2014/other.txt": b"x",
        "../tweets_GroundTruth.txt": b"outside",
    }
    outer = tmp_path / "v.tar.gz"
    outer.write_bytes(archive({readers.SNIPPETS_ARCHIVE: archive(inner)}))
    target = tmp_path / "target"
    target.mkdir()
    monkeypatch.setattr(readers, "download", lambda package, folder: outer)
    readers.unpack_snippets(target)
    assert [path.name for path in target.iterdir()] == ["tweets_GroundTruth.txt"]
    monkeypatch.setattr(readers, "cached", lambda name, build: target)
    rows = readers.read_snippets("tweets_GroundTruth.txt").parts["train"]
    assert rows[1] == (2, {"text": "bad", "rating": -3.0})


# ---- the hub -------------------------------------------------------------------------------------

PLAIN = [name for name, task in tasks.TASKS.items() if task.hub and not task.hub.files]


@pytest.mark.parametrize("name", PLAIN)
def test_datasets_reads_each_repository_layout(name, tmp_path):
    """The hub's repositories as local folders of parquet, read by `datasets`."""
    task = tasks.TASKS[name]
    rows = [ROWS[task.folder or name](k) for k in range(6)]
    splits = sorted({task.hub.train, task.hub.test})
    folder = task.hub.config or "data"
    for split in splits:
        path = tmp_path / folder / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pandas.DataFrame(rows).to_parquet(path)
    if task.hub.config:
        lines = ["---", "configs:", f"- config_name: {task.hub.config}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {folder}/{split}-*"]
        (tmp_path / "README.md").write_text("\n".join([*lines, "---", ""]))
    local = readers.Hub(str(tmp_path), task.hub.config, task.hub.train, task.hub.test)
    parts, _ = readers.read_dataset(local, "main")
    assert [number for number, _ in parts["train"]] == list(range(6))
    read_rows = [task.read_row(row) for _, row in parts["train"]]
    assert read_rows == [task.read_row(row) for row in rows]


class Refusal(Exception):
    """An error with the status of the hub's answer, as huggingface_hub's have it."""

    def __init__(self, status):
        super().__init__(f"status {status}")
        self.response = type("Response", (), {"status_code": status})


@pytest.fixture
def answer(monkeypatch):
    """answer(error): the hub raises this when it is asked."""
    import datasets
    import huggingface_hub

    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", module.HF_HUB_OFFLINE)

    def set_answer(error):
        def ask(*arguments, **options):
            raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", ask)

    return set_answer


@pytest.mark.parametrize("error", [ConnectionError("no route"), Refusal(429), Refusal(503)])
def test_a_hub_that_cannot_answer_is_out_of_reach(error, answer):
    answer(error)
    message = "the hub cannot be reached for agnews and it is not cached; .*--data-dir.*movies"
    with pytest.raises(readers.NoHub, match=message):
        tasks.read_task(tasks.TASKS["agnews"])


@pytest.mark.parametrize("status, advice", [(401, "log"), (403, "accept its terms"), (404, "no")])
def test_a_refusal_is_one_sentence_and_no_stand_in_is_used(status, advice, answer):
    answer(Refusal(status))
    with pytest.raises(UserError, match=f"{advice}.*--data-dir") as error:
        tasks.read_task(tasks.TASKS["agnews"])
    assert not isinstance(error.value, readers.NoHub) and str(status) in str(error.value)


# ---- a hub that answers, and then does not -------------------------------------------------------

HUB = readers.Hub("owner/name")
OLD = "a" * 40
NEW = "b" * 40


@pytest.fixture
def half(monkeypatch):
    """half(error, cached): the hub tells of commit NEW and loading it fails; `cached` is there.

    It returns the commits that are read, None for what is cached.
    """

    def set_up(error, cached=None):
        commits = []

        def read_dataset(hub, commit):
            commits.append(commit)
            if commit is None and cached:
                return {"train": [(0, {"x": 1})], "test": []}, cached
            raise error

        monkeypatch.setattr(readers, "newest_commit", lambda hub: NEW)
        monkeypatch.setattr(readers, "read_dataset", read_dataset)
        return commits

    return set_up


def hidden(error, behind):
    """An error as `datasets` raises it: the one that led to it is not told."""
    try:
        try:
            raise error
        except Exception:
            raise behind from None
    except Exception as outer:
        return outer


def broken_ways():
    unavailable = LocalEntryNotFoundError("not in the cache")
    unavailable.__cause__ = Refusal(503)
    return [
        Refusal(429),
        Refusal(500),
        ConnectionError("no route"),
        TimeoutError("slow"),
        httpx2.RemoteProtocolError("peer closed connection"),
        LocalEntryNotFoundError("not in the cache"),
        unavailable,
        hidden(unavailable, FileNotFoundError("Couldn't find any data file")),
    ]


@pytest.mark.parametrize("error", broken_ways(), ids=repr)
def test_where_the_way_to_the_hub_breaks_the_cache_counts_and_then_nothing(error, half, capsys):
    half(error, cached=OLD)
    assert readers.read_hub("task", HUB, ["movies"]).source == f"hub:owner/name@{OLD[:12]}"
    warning = f"warning: the hub cannot be reached; using the cached owner/name@{OLD[:12]}\n"
    assert capsys.readouterr().err == warning
    half(error)
    with pytest.raises(readers.NoHub, match="cannot be reached for all of task.*run the same"):
        readers.read_hub("task", HUB, ["movies"])


def test_cached_rows_of_the_newest_commit_are_not_fetched_again(half, capsys):
    commits = half(AssertionError("this is not fetched"), cached=NEW)
    assert readers.read_hub("task", HUB, []).source == f"hub:owner/name@{NEW[:12]}"
    assert commits == [None]
    assert capsys.readouterr().err == ""


def lasting_problems():
    response = httpx2.Response(404, request=httpx2.Request("GET", "https://hub/name.py"))
    absent = RemoteEntryNotFoundError("no script", response=response)
    return [
        (Refusal(403), r"which refuses its files \(403\); accept its terms"),
        (DatasetNotFoundError("gated"), r"which refuses its files \(gated\); accept its terms"),
        (OSError(28, "No space left on device"), r"\(No space left on device\); make room"),
        (ValueError("row 3\nis wrong"), r"\(row 3\); use --data-dir"),
        (hidden(absent, ValueError("row 3 is wrong")), r"\(row 3 is wrong\); use --data-dir"),
    ]


@pytest.mark.parametrize("error, message", lasting_problems(), ids=repr)
def test_what_trying_again_does_not_change_is_one_sentence(error, message, half):
    half(error, cached=OLD)
    with pytest.raises(
        UserError, match=f"cannot load owner/name from the hub.*{message}"
    ) as raised:
        readers.read_hub("task", HUB, [])
    assert not isinstance(raised.value, readers.NoHub)
    assert "\n" not in str(raised.value)


def test_a_hub_that_does_not_answer_is_given_up_in_time(monkeypatch):
    import time

    from support import hub

    start = time.perf_counter()
    with pytest.raises(TimeoutError):
        hub.within_seconds(lambda: time.sleep(30), seconds=0.2)
    assert time.perf_counter() - start < 2
    assert hub.http_status(ValueError("x")) is None
    error = ValueError("outer")
    error.__cause__ = Refusal(404)
    assert hub.http_status(error) == 404
