"""pytest tests/test_readme.py: every command of README.md runs, on a tiny model where it would take long, and what it says is so."""
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import options
import reproduce
import sweep

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = list(dict.fromkeys(re.findall(r"(?:^|`|&& \S*)python ia2\.py( [^`\n]*)", TEXT, re.MULTILINE)))
SMALL = ["--test", "2", "--max-epochs", "2"]


def test_all_kinds_of_commands_are_found():
    text = " ".join(COMMANDS)
    assert len(COMMANDS) >= 6 and all(word in text for word in ("--report", "--adapter", "--shard", "my_task", "--sets 5"))


def test_the_commands_run_in_the_order_of_the_page(place, tmp_path, monkeypatch, capsys):
    """In a folder of their own; the model, the data and the number of queries are small ones."""
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in re.findall(r"^\{\"query\".*\}$", TEXT, re.MULTILINE)]
    assert len(rows) == 4
    (tmp_path / "my_task").mkdir()
    for part in ("train", "test"):
        (tmp_path / "my_task" / f"{part}.jsonl").write_text("".join(
            json.dumps({**row, "query": row["query"].replace("Ticket", part.title())}) + "\n" for row in rows))
    for command in COMMANDS:
        command = command.replace("$SLURM_ARRAY_TASK_ID", "0").replace("{}", "0").split(" :::")[0]
        command = command.replace("--n 2 4 8 16", "--n 2 4")  # sixteen demos do not fit into the tiny model's context
        words = shlex.split(command)
        if "--help" in words:
            continue
        if "--adapter" in words:
            place_of = words.index("--adapter") + 1
            start = words[place_of].removesuffix("HASH").removeprefix("runs/")
            words[place_of], = map(str, (tmp_path / "runs").glob(f"{start}*"))
        if "--report" not in words:
            words += ["--data-dir", str(place / "bench"), *SMALL]
            if "--adapter" not in words:
                words += ["--model", str(place / "tiny")]
                words += ["--balanced"] if "--no-balanced" not in words else []  # as by default with the bundled model
        assert sweep.main(words) == 0, command
        assert "| base " in capsys.readouterr().out
    assert (tmp_path / "runs" / "movies" / "report.csv").exists()


def test_the_table_of_options_is_that_of_the_parser():
    known = {option for action in options.parser()._actions for option in action.option_strings} - {"-h", "--help"}
    table = TEXT.split("## Options")[1].split("\n## ")[0]
    assert set(re.findall(r"--[a-z][a-z-]*", table)) - {"--help"} == known


def test_the_files_are_those_of_the_table():
    table = TEXT.split("## The files")[1].split("\n## ")[0]
    assert set(re.findall(r"`(\w+\.py)`", table)) == {path.name for path in ROOT.glob("*.py")}


def test_links_and_pictures_are_there():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT) + re.findall(r'src="([^"]+)"', TEXT)
    assert len(targets) >= 2 and all((ROOT / target).exists() for target in targets), targets


@pytest.mark.parametrize("name", sorted(path.parent.name for path in (ROOT / "results").glob("*/results.jsonl")))
def test_a_committed_report_is_what_its_results_say(name, capsys, tmp_path):
    """`--report results/<name>/results.jsonl` prints the committed tables to the last digit, and so does README."""
    before = (ROOT / "results" / name / "report.md").read_text(encoding="utf-8")
    shutil.copy(ROOT / "results" / name / "results.jsonl", tmp_path)
    assert sweep.main(["--report", str(tmp_path / "results.jsonl")]) == 0
    assert capsys.readouterr().out == before
    for line in re.findall(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", TEXT, re.DOTALL):
        assert line.strip() in before


def test_a_committed_row_comes_out_again_of_its_own_command(tmp_path, capsys):
    """The row of the shortest training; another CPU rounds otherwise, so one query of the 200 may change sides."""
    rows = [json.loads(line) for line in (ROOT / "results" / "movies" / "results.jsonl").read_text().splitlines()]
    row = min((row for row in rows if row["method"] == "sft" and row["eval_dataset"] == "movies"), key=lambda row: row["steps"])
    words = shlex.split(row["command"])
    assert words[:2] == ["python", "ia2.py"]
    assert sweep.main([*words[2:], "--out", str(tmp_path)]) == 0
    again, = (found for found in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines()) if found["run"] == row["run"])
    assert (again["steps"], again["test_data"]) == (row["steps"], row["test_data"])
    assert [again[key] for key in ("accuracy", "ece", "asim", "dev_loss")] == pytest.approx(
        [row[key] for key in ("accuracy", "ece", "asim", "dev_loss")], abs=0.006)


def test_the_comparison_of_teachers_runs_and_is_the_committed_one(tmp_path):
    reproduce.compare_teachers(tmp_path / "teacher.jsonl", sets=1, numbers=(2,), queries=4)
    assert reproduce.teacher_table(tmp_path / "teacher.jsonl").count("\n") == 1 + len(reproduce.SETTINGS)
    assert reproduce.teacher_table(ROOT / "results" / "teacher.jsonl") in TEXT


def test_the_comparison_of_updates_is_the_committed_one():
    assert reproduce.update_table(ROOT / "results" / "overlap.jsonl") in TEXT
