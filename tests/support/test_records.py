"""pytest tests/support/test_records.py: rows are written whole, read strictly, and shown."""

import json
import re

import pytest

from support import records
from support.cli import UserError


def settings(**changes):
    return {"method": "sft", "model": "m", "dataset": "d", "n": 4, "set": 0, "lr": 1e-3, **changes}


def result(**changes):
    return {"eval_dataset": "d", "test_data": "t", "accuracy": 0.5, **changes}


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def file(tmp_path):
    for number in range(3):
        records.add_rows(tmp_path, settings(set=number), [result()], "python ia2.py")
    return tmp_path / "results.jsonl"


def test_rows_of_a_run_that_is_made_again_take_the_place_of_the_former_ones(file, tmp_path):
    again = records.add_rows(tmp_path, settings(set=1), [result(accuracy=0.9)], "python ia2.py")
    rows = records.read_rows(file)
    assert [row["set"] for row in rows] == [0, 1, 2] and rows[1] == again[0]
    assert rows[1]["accuracy"] == 0.9, "the adapter that is there now is that of the second time"
    row = rows[0]
    assert row["command"] == "python ia2.py" and row["versions"]["torch"]
    assert row["threads"] > 0


def test_a_cut_last_line_is_passed_over_and_replaced(file, tmp_path):
    whole = file.read_bytes()
    for length in (1, 40, len(whole) // 3 - 5):
        write(file, whole + whole[:length])
        assert len(records.read_rows(file)) == 3
    write(file, whole.rstrip(b"\n"))
    assert len(records.read_rows(file)) == 3, "a whole line without its newline counts"
    records.add_rows(tmp_path, settings(set=3), [result()], "c")
    assert len(records.read_rows(file)) == 4


@pytest.mark.parametrize("newline", ["", "\n"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_that_was_saved_again_as_one_array_is_refused_and_kept(
    newline, indent, file, tmp_path
):
    text = json.dumps(records.read_rows(file), indent=indent) + newline
    write(file, text)
    with pytest.raises(UserError, match="line 1: this is not a result"):
        records.add_rows(tmp_path, settings(set=9), [result()], "c")
    with pytest.raises(UserError, match="line 1: this is not a result"):
        records.make_out(tmp_path)
    assert file.read_text() == text


@pytest.mark.parametrize(
    "line, problem",
    [
        ("[]", "it is a JSON list"),
        ("3", "it is a JSON int"),
        ('"row"', "it is a JSON str"),
        ("null", "it is not JSON"),
        ("{}", "it has no run, method"),
        ('{"run": {"0": "x"}}', "it has no method"),
        ("method,accuracy", "it is not JSON"),
        ("[1, 2", "it is not JSON"),
    ],
)
def test_what_is_no_row_is_named_with_its_line(line, problem, file):
    with pytest.raises(UserError, match=f"line 4: this is not a result .{problem}"):
        records.read_rows(write(file, file.read_text() + line))


def test_a_line_may_be_cut_anywhere(file):
    rows = records.read_rows(file)
    last = {**rows[0], "run": "r", "nested": {"a": [1, -2.5e-7, None], "b": {}}, "text": '\\é"'}
    line = json.dumps(last)
    for length in range(1, len(line)):
        text = "".join(json.dumps(row) + "\n" for row in rows) + line[:length]
        assert records.read_rows(write(file, text)) == rows, line[:length]


@pytest.mark.parametrize("spoil", ["{row}{row}", "{row} {{", "{row},", "{short},}}", "{{{row}"])
def test_a_last_line_that_was_spoiled_is_not_taken_for_a_cut_one(spoil, file):
    """As where two files were joined and one had no newline at its end."""
    row = file.read_text().splitlines()[0]
    text = file.read_text() + spoil.format(row=row, short=row[:-1])
    with pytest.raises(UserError, match="line 4: this is not a result .it is not JSON"):
        records.read_rows(write(file, text))


@pytest.mark.parametrize("change", [{"set": "zero"}, {"n": 4.0}, {"lr": "fast"}, {"set": True}])
def test_a_row_whose_numbers_are_none_is_named(change, file):
    rows = records.read_rows(file)
    write(file, "".join(json.dumps({**row, **change}) + "\n" for row in rows[:1]))
    with pytest.raises(
        UserError, match="line 1: this is not a result .(n and set|lr) (are|is) not"
    ):
        records.read_rows(file)


def test_a_folder_in_the_place_of_the_results_is_named(tmp_path):
    (tmp_path / "results.jsonl").mkdir()
    with pytest.raises(UserError, match="results.jsonl is a folder and not a file of results"):
        records.make_out(tmp_path)


def test_what_a_killed_process_left_of_an_adapter_is_removed(tmp_path):
    save = lambda folder: (folder / "weights").write_text("x")  # noqa: E731
    [row] = records.add_rows(tmp_path, settings(), [result()], "c", save=save)
    adapter = tmp_path / row["run"]
    leftover = adapter.parent / f".partial-{adapter.name}-abc"
    leftover.mkdir()
    records.add_rows(tmp_path, settings(), [result()], "c", save=save)
    assert [each.name for each in adapter.parent.iterdir()] == [adapter.name]
    assert (adapter / "weights").read_text() == "x"


@pytest.mark.parametrize("field", ["run", "method", "accuracy", "test_data", "set"])
def test_a_row_that_was_trimmed_by_hand_is_named(field, file):
    rows = records.read_rows(file)
    del rows[1][field]
    write(file, "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=f"line 2: this is not a result .it has no {field}"):
        records.read_rows(file)


def test_a_run_is_named_by_all_of_its_settings_but_the_method():
    name = records.run_name(settings())
    assert name.startswith("d-n4-set0-lr0.001-") and name.endswith("/sft")
    other = records.run_name(settings(method="ia2"))
    assert other.rpartition("/")[0] == name.rpartition("/")[0]
    for change in ({"seed": 1}, {"lr": 1e-4}, {"keep": "last"}, {"model": "x"}):
        assert records.run_name(settings(**change)) != name


@pytest.mark.parametrize("dataset", ["a/" * 200, "b" * 250, "/" + "données/" * 30, "___/"])
def test_a_run_of_a_folder_with_a_long_or_an_odd_path_has_a_usual_name(dataset):
    name = records.run_name(settings(dataset=dataset))
    run, method = name.split("/")
    assert method == "sft" and 10 < len(run) < 120
    assert re.fullmatch(r"[-.A-Za-z0-9]+", run)
    assert records.run_name(settings(dataset=f"x{dataset}")) != name


def test_an_adapter_and_its_training_are_saved_beside_the_rows(tmp_path):
    stages = [
        {"name": "ia2", "steps": 50, "seconds": 2.0, "dev_loss": 3.0},
        {"name": "sft", "steps": 10, "seconds": 1.5, "dev_loss": 0.5},
    ]

    def save(folder):
        (folder / "weights").write_text("w")

    [row] = records.add_rows(tmp_path, settings(), [result()], "c", {"stages": stages}, save)
    assert (row["steps"], row["seconds"], row["dev_loss"]) == (60, 3.5, 0.5)
    folder = tmp_path / row["run"]
    assert {path.name for path in folder.iterdir()} == {"weights", records.TRAINING_FILE}
    assert json.loads((folder / records.TRAINING_FILE).read_text())["stages"] == stages


def test_an_adapter_that_cannot_be_saved_leaves_nothing(tmp_path):
    def save(folder):
        (folder / "half").write_text("x")
        raise UserError("no")

    with pytest.raises(UserError):
        records.add_rows(tmp_path, settings(), [result()], "c", {}, save)
    assert not (tmp_path / "results.jsonl").exists()
    assert not list(tmp_path.glob("**/half"))


def test_a_figure_that_is_no_number_is_not_written(tmp_path):
    with pytest.raises(ValueError):
        records.add_rows(tmp_path, settings(), [result(nll=float("nan"))], "c")
    assert not (tmp_path / "results.jsonl").exists()


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(UserError, match="cannot write to .*; give another --out"):
        records.make_out(tmp_path / "out")


def test_the_digest_of_texts_is_a_short_sha256():
    assert records.digest([["q", "r"]]) == records.digest([("q", "r")])
    assert records.digest([["q", "r"]]) != records.digest([["q", "s"]])
    assert len(records.digest([])) == 16


def shown(method, task="d", **changes):
    figures = {"accuracy": 0.5, "accuracy_among_labels": 0.75, "nll": 0.25, "ece": 0.125}
    row = {"method": method, "dataset": "d", "eval_dataset": task, **figures}
    return {**row, "ece_floor": 0.0625, "gap": -0.5, "asim": 0.5, "asim_centred": None, **changes}


def test_the_table_has_a_line_a_method_and_a_star_out_of_domain():
    rows = [shown(method, test) for method in ("base", "sft") for test in ("d", "e")]
    lines = records.score_grid(rows).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert "d accuracy %" in lines[0] and "e* accuracy %" in lines[0]
    assert "0.125 (0.062)" in lines[2] and "-0.500" in lines[2] and " - " in lines[2]
    single = records.score_grid([shown("base")]).splitlines()[0]
    assert "| accuracy % |" in single, "with one test its name is in the heading alone"


@pytest.mark.parametrize("names", [("d",), ("d", "e"), ("d", "e", "f")])
def test_the_heading_has_a_number_of_queries_for_each_test(names):
    rows = []
    for size, name in enumerate(names, start=7):
        of_test = {"test": size, "eval_source": "s", "labels": "words", "balanced": False}
        rows.append(shown("base", name, n=4, set=0, model="m", **of_test))
    head = records.table(rows).splitlines()[0]
    for size, name in enumerate(names, start=7):
        assert f"{name}: {size} test queries" in head or len(names) == 1
    assert head.count("test queries") == len(names)


def test_samples_and_key_values_are_text_to_read():
    samples = {"base": ["x 0.10", "y 0.20"], "ia2-sft": ["z 0.30", "z 0.90"]}
    text = records.show_samples([("q1", " yes"), ("q2", " no")], samples)
    assert text.splitlines()[0] == "q1 -> yes" and text.splitlines()[5] == "    ia2-sft  z 0.90"
    stages = [{"name": "ia2", "kept_step": 4, "steps": 9, "first_loss": 90.55521}]
    lines = records.key_values([shown("ia2", stages=stages)], 1_500_000_000).splitlines()
    values = dict(line.split(": ") for line in lines)
    assert values["peak_memory_gb"] == "1.50" and values["ia2_kept_steps"] == "ia2 4 of 9"
    assert values["ia2_first_loss"] == "90.5552"


def test_a_commit_is_marked_where_its_python_differs(tmp_path, monkeypatch):
    code = tmp_path / "support" / "records.py"
    code.parent.mkdir()
    code.write_text("one = 1\n")
    results = tmp_path / "results.jsonl"
    results.write_text("")
    author = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    records.git(tmp_path, "init", "--quiet")
    records.git(tmp_path, "add", ".")
    records.git(tmp_path, *author, "commit", "--quiet", "--message", "first")
    monkeypatch.setattr(records, "__file__", str(code))
    name = records.commit.__wrapped__()
    assert records.git(tmp_path, "rev-parse", "HEAD").startswith(name)
    results.write_text("a row\n")
    assert records.commit.__wrapped__() == name
    code.write_text("one = 2\n")
    assert records.commit.__wrapped__() == f"{name}+"
