"""pytest tests/sources/test_readers.py: local files, and the hub's answers and caches."""

import io
import tarfile

import pandas
import pytest
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
