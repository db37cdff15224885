"""pytest tests/lab/test_docs.py: every command of the pages runs on a tiny model; what they say is so."""
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest

import ia2
import lora
from lab import adapters, bench, report, reproduce, sweep
from sources import offline, tasks

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.name: path.read_text(encoding="utf-8")
        for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
MAINS = {"ia2.py": ia2.main, "lab.sweep": sweep.main, "lab.report": report.main,
         "lab.adapters": adapters.main, "lab.bench": bench.main,
         "lab.reproduce": reproduce.main}
COMMANDS = list(dict.fromkeys(words for text in DOCS.values() for words in re.findall(
    r"(?:^|`|&& \S*)python (?:-m )?((?:ia2\.py|lab\.\w+)[^`\n#]*)", text, re.MULTILINE)))


def test_all_kinds_of_commands_are_found():
    assert {command.split()[0] for command in COMMANDS} >= {
        "ia2.py", "lab.sweep", "lab.report", "lab.adapters", "lab.bench"}
    assert len(COMMANDS) >= 8


def test_the_commands_run_in_the_order_of_the_pages(place, tmp_path, monkeypatch, capsys):
    """In a folder of their own; the model, the data and the number of queries are small ones."""
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in re.findall(r"^\{\"query\".*\}$", README, re.MULTILINE)]
    assert len(rows) == 4
    (tmp_path / "my_task").mkdir()
    for part in ("train", "test"):
        (tmp_path / "my_task" / f"{part}.jsonl").write_text("".join(
            json.dumps({**row, "query": row["query"].replace("Ticket", part.title())}) + "\n"
            for row in rows))
    (tmp_path / "results").symlink_to(ROOT / "results")
    for command in COMMANDS:
        command = command.replace("$SLURM_ARRAY_TASK_ID", "0").replace("<folder>", "smollm2-135m-movies")
        script, *words = shlex.split(command)
        if "--help" in words or script in ("lab.bench", "lab.reproduce"):  # these two have tests of their own
            continue
        words = [str(next((tmp_path / "runs").glob("*/ia2-sft"))) if "<run>" in word else word
                 for word in words]
        words = [str(ROOT / word) if word.startswith("results/") else word for word in words]
        if script != "lab.report":
            words += ["--data-dir", str(place / "bench"), "--test", "2", "--model", str(place / "tiny")]
            words += ["--epochs", "2"] if script != "lab.adapters" else []
        if "--sets" in words:  # a small one
            words[words.index("--sets") + 1] = "1"
        monkeypatch.setattr("sys.argv", [script, *words])
        assert offline.run_main(MAINS[script], lora.LoRAError) == 0, command + capsys.readouterr().err
        assert "| base " in capsys.readouterr().out


def test_the_method_is_shown_in_the_words_of_main():
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1].splitlines()
    main = [re.sub(r"\s+#.*", "", line).strip() for line in inspect.getsource(ia2.main).splitlines()]
    assert len(block) <= 9 and all(line.strip() in main for line in block)
    places = [main.index(line.strip()) for line in block[:5]]
    assert places == sorted(places)


def test_the_front_page_is_short_and_starts_with_the_method():
    assert len(README.encode()) <= 9000 and len(README.splitlines()) <= 150
    first = "\n".join(README.splitlines()[:40])
    for piece in ("docs/teacher-student.svg", "```python", "ia2.py --dataset sst2 --n 4", "| ia2-sft |",
                  "run.ipynb"):
        assert piece in first, piece


def test_the_tables_of_options_are_those_of_the_parsers():
    reference = DOCS["reference.md"]
    known = {option for action in offline.options("")._actions
             for option in action.option_strings} - {"-h", "--help"}
    table = reference.split("## Options of `ia2.py`")[1].split("`lab.sweep` takes")[0]
    assert set(re.findall(r"--[a-z][a-z-]*", table)) == known
    more = reference.split("`lab.sweep` takes")[1].split("## Models")[0]
    assert set(re.findall(r"--[a-z][a-z-]*", more)) == {"--n", "--lr", "--set", "--sets", "--methods",
                                                        "--demos", "--sft-on", "--beta"}
    assert all(f"`{name}`" in reference for name in tasks.TASKS)


def test_links_and_pictures_are_there():
    for name, text in DOCS.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        targets = re.findall(r"\]\((?!http)([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
        assert all((folder / target).exists() for target in targets), (name, targets)


def test_nothing_tells_of_another_machine():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("*.md"), *ROOT.glob("docs/*"),
                 *ROOT.glob("results/*/*.jsonl"), ROOT / "run.ipynb"]:
        assert not re.search(rb"/home/|/root/|/tmp/tmp|/scratch/", path.read_bytes()), path


@pytest.mark.parametrize("name", sorted(path.parent.name
                                        for path in (ROOT / "results").glob("*/results.jsonl")))
def test_committed_tables_are_what_their_rows_say(name, capsys, monkeypatch):
    """docs/results.md has the report's tables to the last digit."""
    monkeypatch.setattr("sys.argv", ["report", str(ROOT / "results" / name / "results.jsonl")])
    assert offline.run_main(report.main) == 0
    found = capsys.readouterr().out
    grids = re.findall(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", DOCS["results.md"], re.DOTALL)
    assert grids and all(grid.strip() in found for grid in grids)


def test_a_committed_row_comes_out_again_of_its_settings(tmp_path, monkeypatch, capsys):
    """The row of the shortest training; another CPU rounds otherwise, so a query of 200 may change."""
    rows = offline.read_rows(ROOT / "results" / "smollm2-135m-movies" / "results.jsonl")
    row = min((row for row in rows if row["method"] == "sft" and row["eval_dataset"] == "movies"),
              key=lambda row: row["steps"])
    words = shlex.split(row["command"])
    assert words[:3] == ["python", "-m", "lab.sweep"] and "--sets" in words
    monkeypatch.setattr("sys.argv", ["ia2.py", "--dataset", "movies", "--n", str(row["n"]), "--set",
                                     str(row["set"]), "--lr", str(row["lr"]),
                                     "--methods", "sft", "--out", str(tmp_path)])
    assert offline.run_main(ia2.main, lora.LoRAError) == 0
    again = next(found for found in offline.read_rows(tmp_path / "results.jsonl") if found["method"] == "sft")
    assert (again["run"], again["steps"], again["test_data"]) == (row["run"], row["steps"], row["test_data"])
    assert [again[key] for key in ("accuracy", "ece", "asim", "dev_loss")] == pytest.approx(
        [row[key] for key in ("accuracy", "ece", "asim", "dev_loss")], abs=0.006)
