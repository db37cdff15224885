"""pytest tests/lab/test_docs.py: every command of the pages runs on a tiny model; what they say is
so.
"""

import functools
import json
import re
import shlex
from pathlib import Path
from statistics import fmean

import pytest

import data
import ia2
import lora
from lab import adapters, anatomy, bench, hypotheses, report, reproduce, sweep
from lab.rows import independent_set
from sources import tasks
from support import cli, records

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {
    path.name: path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
RESULTS = DOCS["results.md"]
MAINS = {
    "ia2.py": ia2.main,
    "lab.sweep": sweep.main,
    "lab.anatomy": anatomy.main,
    "lab.hypotheses": hypotheses.main,
    "lab.report": report.main,
    "lab.adapters": adapters.main,
    "lab.bench": bench.main,
    "lab.reproduce": reproduce.main,
}
COMMAND = re.compile(r"(?:^|`|&& \S*)python (?:-m )?((?:ia2\.py|lab\.\w+)[^`\n#]*)", re.MULTILINE)
COMMANDS = list(dict.fromkeys(words for text in DOCS.values() for words in COMMAND.findall(text)))
FILES = sorted(ROOT.glob("results/*-*/results.jsonl"))  # of the former procedure
PLAN_FILES = sorted(set(ROOT.glob("results/*/results.jsonl")) - set(FILES))


# ---- commands ------------------------------------------------------------------------------------


def test_all_kinds_of_commands_are_found():
    kinds = {command.split()[0] for command in COMMANDS}
    assert kinds >= {"ia2.py", "lab.sweep", "lab.report", "lab.adapters", "lab.bench"}
    assert len(COMMANDS) >= 8


def own_task(folder):
    """README's own examples as training and test files."""
    rows = [json.loads(line) for line in re.findall(r"^\{\"query\".*\}$", README, re.MULTILINE)]
    assert len(rows) == 4
    folder.mkdir()
    for part in ("train", "test"):
        lines = []
        for row in rows:
            query = row["query"].replace("Ticket", part.title())
            lines.append(json.dumps({**row, "query": query}) + "\n")
        (folder / f"{part}.jsonl").write_text("".join(lines))


def made_small(command, place, runs):
    """The words of a command with a tiny model and small data; None to leave it out."""
    command = command.replace("$SLURM_ARRAY_TASK_ID", "0")
    script, *words = shlex.split(command)
    tested_elsewhere = script in ("lab.bench", "lab.reproduce", "lab.page") or "--show" in words
    if "--help" in words or tested_elsewhere or any("results/*" in word for word in words):
        return None
    if script in ("lab.report", "lab.hypotheses"):
        words = [str(ROOT / word) if word.startswith("results/") else word for word in words]
        return words or None  # a mention of the command
    adapter = next(runs.glob("sst2-*/ia2-sft"), None)
    words = [str(adapter) if "<run>" in word else word for word in words]
    words += ["--data-dir", str(place / "bench"), "--model", str(place / "tiny")]
    words += ["--test", "4" if script == "lab.anatomy" else "2"]
    if script in ("ia2.py", "lab.sweep"):
        words += ["--epochs", "2"]
    if "--sets" in words:
        words[words.index("--sets") + 1] = "1"
    return words


def test_the_commands_run_in_the_order_of_the_pages(
    place, tmp_path, monkeypatch, capsys, few_unrelated_texts
):
    monkeypatch.chdir(tmp_path)
    own_task(tmp_path / "my_task")
    for command in COMMANDS:
        script = command.split()[0]
        words = made_small(command, place, tmp_path / "runs")
        if words is None:
            continue
        monkeypatch.setattr("sys.argv", [script, *words])
        code = cli.run_main(MAINS[script], lora.LoRAError)
        printed = capsys.readouterr()
        assert code == 0, command + printed.err
        assert re.search(r"\bbase\b|\bH5\b", printed.out) or "--merge" in command, command


PARSERS = {"lab.sweep": sweep.sweep_parser, "lab.anatomy": anatomy.anatomy_parser}
PLANNED = re.findall(r"^    python -m (lab\.\w+) (.*)$", DOCS["plan.md"], re.MULTILINE)


@pytest.mark.parametrize("script, words", PLANNED)
def test_a_planned_command_is_understood_and_names_its_dtype(script, words):
    """A run that the plan speaks of keeps to its recipe: no option of a method is changed."""
    args = PARSERS[script]().parse_args(shlex.split(words))
    assert args.dtype == "float32"
    assert args.seed == 0 and args.out.startswith("results/")


def options_of(parser):
    found = set()
    for action in parser._actions:
        found |= set(action.option_strings)
    return {option for option in found if option.startswith("--")} - {"--help", "--no-balanced"}


def test_the_tables_of_options_are_those_of_the_parsers():
    reference = DOCS["reference.md"]
    main = options_of(cli.experiment_parser("", ("sft",), ("sft",)))
    table = reference.split("## Options of `ia2.py`")[1].split("`lab.sweep` takes")[0]
    assert set(re.findall(r"--[a-z][a-z-]*", table)) - {"--no-balanced"} == main
    more = reference.split("`lab.sweep` takes")[1].split("## Models")[0]
    added = options_of(sweep.sweep_parser()) - main
    assert set(re.findall(r"--[a-z][a-z-]*", more)) >= added
    for name in tasks.TASKS:
        assert f"`{name}`" in reference


# ---- pages ---------------------------------------------------------------------------------------


def test_the_front_page_starts_with_the_method_and_one_command():
    first = "\n".join(README.splitlines()[:40])
    for piece in ("docs/teacher-student.svg", "METHODS = {", "ia2.py --dataset sst2 --n 4"):
        assert piece in first, piece
    assert "(run.ipynb)" in README


def test_links_and_pictures_are_there():
    for name, text in DOCS.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        targets = re.findall(r"\]\((?!http)([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
        missing = [target for target in targets if not (folder / target).exists()]
        assert not missing, name


def test_links_into_a_page_have_a_heading_to_go_to():
    headings = {}
    for name, text in DOCS.items():
        found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}
        headings[name] = slugs
    for name, text in DOCS.items():
        for page, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", text):
            target = Path(page).name or name
            assert anchor in headings[target], (name, page, anchor)


def test_nothing_tells_of_another_machine():
    paths = [*ROOT.glob("*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("*.md"), *ROOT.glob("docs/*")]
    paths += [*ROOT.glob("results/*/*.jsonl"), *ROOT.glob("results/**/*.md"), ROOT / "run.ipynb"]
    for path in paths:
        assert not re.search(rb"/home/|/root/|/tmp/tmp|/scratch/", path.read_bytes()), path


# ---- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES + PLAN_FILES, ids=lambda file: file.parent.name)
def test_the_printed_tables_beside_the_rows_are_what_the_report_prints(file, capsys):
    report.main([str(file)])
    printed = capsys.readouterr().out
    assert file.with_name("report.md").read_text(encoding="utf-8") == printed


def test_the_report_of_all_files_is_what_the_report_prints(capsys):
    report.main([str(file) for file in FILES])
    printed = capsys.readouterr().out
    assert (ROOT / "results" / "report.md").read_text(encoding="utf-8") == printed


def test_the_anatomy_beside_its_records_is_what_the_command_prints(capsys, tmp_path):
    folder = ROOT / "results" / "anatomy"
    summary = tmp_path / "anatomy.json"
    anatomy.main(["--show", str(folder / "anatomy.jsonl"), "--json", str(summary)])
    printed = capsys.readouterr().out
    assert (folder / "report.md").read_text(encoding="utf-8") == printed
    committed = json.loads((ROOT / "results" / "anatomy.json").read_text(encoding="utf-8"))
    assert json.loads(summary.read_text(encoding="utf-8")) == committed


def test_the_verdicts_beside_the_rows_are_what_the_command_prints(capsys):
    anatomy_file = ROOT / "results" / "anatomy" / "anatomy.jsonl"
    hypotheses.main([*map(str, PLAN_FILES), "--anatomy", str(anatomy_file)])
    assert VERDICTS.read_text(encoding="utf-8") == capsys.readouterr().out


INTERVAL = re.compile(r"[+-]?[\d.]+ \[[+-]?[\d.]+, [+-]?[\d.]+\]")
VERDICTS = ROOT / "results" / "hypotheses.md"
PRINTED = [*ROOT.glob("results/**/report.md"), VERDICTS]
REPORTS = "\n".join(path.read_text(encoding="utf-8") for path in PRINTED)


def unprinted(text, reports):
    """Intervals of a text that no report has."""
    there = set(INTERVAL.findall(reports))
    return [interval for interval in INTERVAL.findall(text) if interval not in there]


def test_every_interval_in_the_docs_is_printed_by_the_report():
    assert len(INTERVAL.findall(RESULTS)) > 80
    assert unprinted(RESULTS, REPORTS) == []
    assert unprinted("it gains +7.9 [+1.3, +14.5] points", REPORTS) == ["+7.9 [+1.3, +14.5]"]


def test_the_front_page_and_the_lesson_have_no_interval_of_their_own():
    lesson = (ROOT / "run.ipynb").read_text(encoding="utf-8")
    assert unprinted(README, REPORTS) == []
    cells = [cell for cell in json.loads(lesson)["cells"] if cell["cell_type"] == "markdown"]
    assert unprinted("\n".join("".join(cell["source"]) for cell in cells), REPORTS) == []


def test_models_are_named_for_what_they_are():
    for line in RESULTS.splitlines():
        if "Coder" in line or "SmolLM2" in line:
            assert "Instruct" in line, line
    assert RESULTS.count("4-bit weights read back into") == 2


@functools.cache
def committed_rows():
    return [row for file in FILES for row in records.read_rows(file)]


def rows_with(**wanted):
    """The committed rows with some settings."""
    found = []
    for row in committed_rows():
        if all(row.get(field) == value for field, value in wanted.items()):
            found.append(row)
    return found


MODELS = {
    "1.5B": {"model": "qwen2.5-coder-1.5b", "labels": "digits"},
    "0.5B": {"model": "qwen2.5-coder-0.5b", "labels": "words"},
    "135M": {"model": "smollm2-135m", "labels": "words"},
}
TASKS = {"SST-2": "sst2", "FinS": "finsen"}
LINE = re.compile(
    r"^\| (?:here, )?(1.5B|0.5B|135M): (\S+?)(?: to (\S+))? \| (.*) \|$", re.MULTILINE
)


def means(rows, method, lr=3e-4):
    """`accuracy / ECE` of a method, as the table beside the paper writes them."""
    held = [row for row in rows if row["method"] == method and row["lr"] in (None, lr)]
    assert len(held) == 5
    accuracy = fmean(row["accuracy"] for row in held)
    if method == "base":
        return f"{100 * accuracy:.1f} ({100 * held[0]['accuracy_among_labels']:.1f})"
    return f"{100 * accuracy:.1f} / {fmean(row['ece'] for row in held):.2f}"


def test_the_table_beside_the_paper_holds_the_means_of_the_rows():
    part = RESULTS.split("## Beside the paper")[1].split("##")[0]
    assert len(LINE.findall(part)) == 9
    assert len(LINE.findall(README)) == 4
    for model, trained, tested, cells in LINE.findall(part + README):
        dataset = TASKS.get(trained, trained)
        test = TASKS.get(tested, tested) or dataset
        rows = rows_with(**MODELS[model], dataset=dataset, eval_dataset=test, n=4, demos="own")
        found = [means(rows, method) for method in ("base", "icl", "sft", "ia2", "ia2-sft")]
        assert cells.split(" | ") == found, (model, trained, tested)


def test_alignment_and_what_follows_stand_side_by_side_as_in_the_rows():
    part = RESULTS.split("More alignment is not more benefit")[1].split("With up to 200")[0]
    line = r"^\| (1.5B|0.5B|135M)(?:: (\S+),.*?)? \| (.*) \| (.*) \|$"
    lines = re.findall(line, part, re.MULTILINE)
    assert len(lines) == 4
    for model, trained, near, accurate in lines:
        dataset = TASKS.get(trained, trained) or "movies"
        found = {"asim": [], "accuracy": []}
        for lr in (1e-4, 3e-4, 1e-3):
            wanted = {**MODELS[model], "dataset": dataset, "n": 4, "demos": "own", "lr": lr}
            rows = rows_with(method="ia2", **wanted)
            found["asim"].append(f"{fmean(row['asim'] for row in rows):.2f}".lstrip("0"))
            rows = rows_with(method="ia2-sft", **wanted)
            accuracy = 100 * fmean(row["accuracy"] for row in rows)
            found["accuracy"].append(f"{accuracy:.1f}")
        assert near.split(", ") == found["asim"]
        assert accurate.split(", ") == found["accuracy"]


def last_stages(rows):
    """The last stage of each run, once."""
    runs = {(row["run"], row["demos"]): row["stages"] for row in rows}
    return [stages[-1] for stages in runs.values()]


def test_how_often_a_stage_kept_nothing_or_ran_to_its_cap_is_said():
    qwens = [row for row in rows_with(method="ia2-sft") if row["model"].startswith("qwen")]
    kept = [stage["kept_step"] for stage in last_stages(qwens)]
    assert f"In {kept.count(0)} of the {len(kept)} runs of IA2 then SFT" in RESULTS
    few = sum(0 < step < 10 for step in kept)
    assert (few, "In 17 more it kept fewer than ten steps" in RESULTS) == (17, True)
    trained = [row for row in rows_with(method="ia2") if row["demos"] != "none"]
    caps = {(row["run"], row["demos"]): 50 if row["n"] <= 4 else 100 for row in trained}
    at_cap = 0
    for row in trained:
        cap = caps.pop((row["run"], row["demos"]), None)
        at_cap += cap is not None and row["stages"][0]["steps"] >= cap
    stages = last_stages(trained)
    assert f"{at_cap} of {len(stages)} IA2 stages ran into their cap" in RESULTS
    last = sum(stage["kept_step"] == stage["steps"] for stage in stages)
    assert f"{last} kept the very last step" in RESULTS


def test_how_often_ece_is_the_error_rate_is_said():
    counts = {}
    for method, lr in (("ia2-sft", 3e-4), ("sft", 3e-4), ("ia2", 3e-4), ("icl", None)):
        rows = rows_with(method=method, lr=lr, n=4, demos="own", model="qwen2.5-coder-1.5b")
        near = [abs(row["ece"] - 1 + row["accuracy_among_labels"]) < 0.01 for row in rows]
        assert len(near) == 20
        counts[method] = sum(near)
    text = " ".join(RESULTS.split())
    assert f"in {counts['ia2-sft']} of 20 tests of a set (SFT {counts['sft']}, " in text
    assert f"IA2 {counts['ia2']}, ICL {counts['icl']})" in text


def test_fifteen_few_shot_sets_are_independent():
    assert len({independent_set(row) for row in rows_with(n=4)}) == 15
    assert "15 independent sets, not 20" in " ".join(RESULTS.split())


def test_committed_rows_tell_the_labels_of_their_few_shot_sets(tokenizer):
    """Their lists of labels came later than the rows; the digests say that they are theirs."""
    loaded = {}
    drawn = {}
    for row in rows_with(dataset="movies"):
        wording = (row["labels"], row["prompt"], row["balanced"])
        if wording not in loaded:
            plain = row["prompt"].startswith("Review")
            options = data.Options(labels=row["labels"], plain=plain)
            loaded[wording] = data.load("movies", tokenizer, options)
        key = (wording, row["n"], row["set"])
        if key not in drawn:
            task = loaded[wording]
            few_shot = data.few_shot_set(task.pool, row["n"], row["set"], 0, row["balanced"])
            drawn[key] = data.training_settings(task, few_shot, row["balanced"])
        for field in ("pool_data", "train_data", "dev_data", "train_labels", "dev_labels"):
            assert drawn[key][field] == row[field], (row["run"], field)
    assert len(drawn) == 35  # 15 of words and 15 of digits with n = 2, 4 and 8, and 5 balanced ones
