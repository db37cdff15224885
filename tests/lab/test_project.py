"""pytest tests/lab/test_project.py: the files around the code agree with it and with each other."""

import ast
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDERS = ("engine", "lab", "sources", "support")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


# ---- requirements --------------------------------------------------------------------------------


def requirements(name):
    """The lines of a requirements file that name a package."""
    lines = []
    for line in read(name).splitlines():
        if line.strip() and not line.startswith(("#", "-r")):
            lines.append(line)
    return lines


def test_pyproject_and_requirements_name_the_same_packages():
    pinned = [line.split("#")[0].strip() for line in requirements("requirements.txt")]
    assert PROJECT["project"]["dependencies"] == pinned


@pytest.mark.parametrize("name", ["requirements.txt", "tests/requirements.txt"])
def test_every_requirement_is_pinned_and_has_its_reason(name):
    lines = requirements(name)
    assert lines
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\w.]+  +# \S.*", line), line


def test_packages_that_are_only_read_are_pinned_by_their_sum():
    lines = requirements("support/bundled.txt")
    assert lines
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\w.]+ --hash=sha256:[0-9a-f]{64}", line), line


def test_uv_and_pip_find_nothing_to_build():
    """Modules called `data` or `metrics` must not land in anybody's site-packages."""
    assert PROJECT["tool"]["uv"]["package"] is False
    assert PROJECT["tool"]["setuptools"] == {"py-modules": []}


def test_ruff_knows_which_modules_are_ours():
    modules = {path.stem for path in ROOT.glob("*.py")} | set(FOLDERS)
    assert set(PROJECT["tool"]["ruff"]["lint"]["isort"]["known-first-party"]) == modules


# ---- the workflow and .ci/run --------------------------------------------------------------------


def test_the_workflow_calls_ci_run_on_the_oldest_python():
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    assert set(workflow["on"]) == {"push", "pull_request"}
    [job] = workflow["jobs"].values()
    assert job["runs-on"] == "ubuntu-latest"
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    [version] = [step["with"]["python-version"] for step in job["steps"] if "with" in step]
    assert PROJECT["project"]["requires-python"].startswith(f">={version},")
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + version.replace(".", "")


STAND_IN = r"""
## Run it
```sh
ls && mkdir -p .venv/bin && printf '%s' '#!/bin/sh
echo "python $*"
case "$*" in *"BROKEN"*) exit 3 ;; esac
' > .venv/bin/python && chmod +x .venv/bin/python
```
## Test it
```sh
.venv/bin/python -m pytest
```
"""


def ci_run(folder, readme):
    """Run .ci/run in a checkout whose README makes a `python` that only tells how it is called."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    (folder / "README.md").write_text(readme, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    options = {"cwd": folder, "env": kept, "text": True, "capture_output": True}
    subprocess.run(["git", "init", "--quiet"], check=True, **options)
    subprocess.run(["git", "add", "."], check=True, **options)
    (folder / "untracked").write_text("", encoding="utf-8")
    stand_in = folder / ".git" / "programs" / "chromium"  # so that no browser is installed
    stand_in.parent.mkdir()
    stand_in.write_text("#!/bin/sh\n", encoding="utf-8")
    stand_in.chmod(0o755)
    kept["PATH"] = f"{stand_in.parent}{os.pathsep}{kept['PATH']}"
    return subprocess.run(["bash", ".ci/run"], **options)


def test_ci_runs_both_commands_of_readme_and_then_ruff_on_tracked_files(tmp_path):
    done = ci_run(tmp_path, STAND_IN)
    assert done.returncode == 0, done.stderr
    calls = [line for line in done.stdout.splitlines() if line.startswith("python ")]
    assert calls == [
        "python -m pytest",
        "python -m ruff check .",
        "python -m ruff format --check .",
    ]
    assert "README.md" in done.stdout.splitlines()
    assert "untracked" not in done.stdout.splitlines()
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("broken", ["-m pytest", "ruff check", "ruff format"])
def test_ci_fails_where_one_of_its_steps_fails(tmp_path, broken):
    done = ci_run(tmp_path, STAND_IN.replace("BROKEN", broken))
    assert done.returncode == 3
    assert broken in done.stdout.splitlines()[-1], "it stops there"


@pytest.mark.parametrize("heading", ["## Run it", "## Test it"])
def test_ci_fails_without_a_command_in_readme(tmp_path, heading):
    done = ci_run(tmp_path, STAND_IN.replace(heading, "## Something else"))
    assert done.returncode == 1
    assert "has lost one of its two commands" in done.stdout


def test_readme_has_the_two_commands_that_ci_runs():
    for heading, end in (("## Run it", "--n 4"), ("## Test it", "-m pytest")):
        block = read("README.md").split(f"\n{heading}\n")[1].split("```")[1]
        [command] = block.strip().splitlines()[1:]
        assert command.endswith(end)


# ---- CITATION.cff --------------------------------------------------------------------------------

# Rules of the Citation File Format 1.2.0, as far as this file uses it.
PERSON = set("family-names given-names name-particle name-suffix affiliation orcid".split())
ENTITY = set("name website city country date-start date-end location".split())
TOP = {
    "required": {"cff-version", "message", "title", "authors"},
    "optional": set(
        "type version date-released abstract keywords license url doi repository-code identifiers "
        "preferred-citation references".split()
    ),
    "types": {"software", "dataset"},
}
REFERENCE = {
    "required": {"type", "title", "authors"},
    "optional": set(
        "conference collection-title year month url doi identifiers notes start end pages "
        "publisher repository-code version license".split()
    ),
    "types": {"article", "conference-paper", "generic", "report", "software", "unpublished"},
}


def faults(citation):
    """What breaks the rules in a CITATION.cff, as a list of sentences."""
    found = work_faults("the file", citation, TOP)
    if citation.get("cff-version") != "1.2.0":
        found.append("cff-version is not 1.2.0")
    if "preferred-citation" in citation:
        found += work_faults("preferred-citation", citation["preferred-citation"], REFERENCE)
    for reference in citation.get("references", []):
        found += work_faults("a reference", reference, REFERENCE)
    return found


def work_faults(where, work, rules):
    """What is wrong with the file itself or with a work that it names."""
    known = rules["required"] | rules["optional"]
    found = [f"{where} has no {key}" for key in sorted(rules["required"] - set(work))]
    found += [f"{where} has an unknown key {key}" for key in sorted(set(work) - known)]
    if "type" in work and work["type"] not in rules["types"]:
        found.append(f"{where} has an unknown type {work['type']}")
    if not work.get("authors"):
        found.append(f"{where} names no authors")
    for author in work.get("authors", []):
        found += name_faults(where, author)
    if "conference" in work:
        found += name_faults(where, work["conference"])
    return found + value_faults(where, work)


def value_faults(where, work):
    """Texts are texts, a year is a number, an address is one, identifiers have a known type."""
    found = []
    for key in ("message", "title", "url", "collection-title"):
        if key in work and not (isinstance(work[key], str) and work[key]):
            found.append(f"{where}: {key} is no text")
    if type(work.get("year", 0)) is not int:
        found.append(f"{where}: year is no number")
    if not re.match(r"(https?|s?ftp)://.", work.get("url", "https://...")):
        found.append(f"{where}: url is no address")
    for identifier in work.get("identifiers", []):
        if not {"type", "value"} <= set(identifier) <= {"type", "value", "description"}:
            found.append(f"{where}: an identifier has other keys")
        elif identifier["type"] not in ("doi", "url", "swh", "other"):
            found.append(f"{where}: an identifier has an unknown type")
    return found


def name_faults(where, name):
    """A person has names of persons, an entity has one `name`; nothing mixes both."""
    keys = set(name)
    person = {"family-names", "given-names"} & keys and keys <= PERSON
    entity = "name" in keys and keys <= ENTITY
    if not person and not entity:
        return [f"{where}: neither a person nor an entity: {sorted(keys)}"]
    return [f"{where}: {key} is no text" for key in sorted(keys) if not isinstance(name[key], str)]


def test_the_citation_keeps_the_rules_of_its_format():
    assert faults(yaml.safe_load(read("CITATION.cff"))) == []


@pytest.mark.parametrize(
    "old, new, fault",
    [
        ("message:", "massage:", "the file has no message"),
        ("cff-version: 1.2.0", "cff-version: 1.1.0", "cff-version is not 1.2.0"),
        ("conference-paper", "paper", "preferred-citation has an unknown type paper"),
        ("family-names", "family-name", "preferred-citation: neither a person nor an entity"),
        ("year: 2026", "year: '2026'", "preferred-citation: year is no number"),
        ("https://", "", "preferred-citation: url is no address"),
        ("type: other", "type: arxiv", "preferred-citation: an identifier has an unknown type"),
    ],
)
def test_a_citation_that_breaks_a_rule_is_seen(old, new, fault):
    text = read("CITATION.cff")
    assert old in text
    found = faults(yaml.safe_load(text.replace(old, new)))
    assert any(sentence.startswith(fault) for sentence in found), found


def test_the_citation_is_of_the_paper_and_of_this_version():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["authors"] == [{"name": re.search(r"20\d\d (.+)", read("LICENSE"))[1]}]
    paper = citation["preferred-citation"]
    assert paper["title"] in read("README.md")
    assert paper["url"] in read("README.md")
    assert paper["url"] == PROJECT["project"]["urls"]["Paper"]
    [preprint] = paper["identifiers"]
    assert preprint["value"].removeprefix("arXiv:") in read("README.md")


# ---- what contributors read ----------------------------------------------------------------------

VERDICT = re.compile(r"- \*\*(Comparable|Not comparable|Renamed|New)\b")


def test_each_change_says_what_it_does_to_figures():
    head, *sections = re.split(r"^## ", read("CHANGELOG.md"), flags=re.MULTILINE)
    for word in ("Comparable", "Not comparable", "Renamed", "New"):
        assert f"**{word}**" in head, f"{word} is explained"
    assert sections[0].startswith("Unreleased\n")
    entries = [line for line in sections[0].splitlines() if line.startswith("- ")]
    assert entries
    for entry in entries:
        assert VERDICT.match(entry), entry


def test_what_contributing_points_to_is_there():
    text = read("CONTRIBUTING.md")
    assert len(text.splitlines()) <= 30
    names = re.findall(r"`([\w./-]+)`", text)
    paths = [name for name in names if "/" in name and name != "owner/name"]
    assert {"sources/tasks.py", "lab/variants.py", "engine/models.py"} <= set(paths)
    for path in paths:
        assert (ROOT / path).exists(), path
    for path, name in (
        ("sources/tasks.py", "TASKS"),
        ("sources/tasks.py", "Item"),
        ("engine/models.py", "MODELS"),
        ("engine/models.py", "Entry"),
        ("lab/variants.py", "LabTarget"),
        ("lab/variants.py", "make_losses"),
        ("lab/variants.py", "METHODS"),
    ):
        assert f"`{name}`" in text
        assert re.search(rf"\b{name}\b", read(path)), (path, name)


# ---- safety --------------------------------------------------------------------------------------

UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "runpy", "shelve"}
UNSAFE_BUILTINS = {"__import__", "compile", "eval", "exec"}
UNSAFE_METHODS = {"extract", "extractall", "popen", "read_pickle", "system"}
UNSAFE_OPTIONS = {"allow_pickle", "shell", "trust_remote_code"}


def unsafe(source):
    """Where code reads pickles, runs text as code, unpacks archives or starts a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        for module in modules:
            if module.split(".")[0] in UNSAFE_MODULES:
                found.append(f"line {node.lineno}: {module}")
        if isinstance(node, ast.Call) and unsafe_call(node):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def unsafe_call(call):
    name = ast.unparse(call.func)
    if name in UNSAFE_BUILTINS or name == "torch.load":
        return True
    if isinstance(call.func, ast.Attribute) and call.func.attr in UNSAFE_METHODS:
        return True
    for option in call.keywords:
        off = isinstance(option.value, ast.Constant) and option.value.value is False
        if option.arg in UNSAFE_OPTIONS and not off:
            return True
    return False


def test_nothing_unpickles_or_runs_foreign_code():
    files = list(ROOT.glob("*.py"))
    for folder in FOLDERS:
        files += (ROOT / folder).glob("*.py")
    for path in files:
        assert unsafe(path.read_text(encoding="utf-8")) == [], path


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load('x.pt')",
        "eval('1')",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=asked)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(words, shell=True)",
        "os.system('ls')",
        "with archive as a:\n    a.extractall(folder)",
    ],
)
def test_unsafe_code_is_seen(source):
    assert unsafe(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "re.compile('x')",
        "'''Never trust_remote_code=True, never torch.load(path).'''",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
        "safetensors.torch.load_file(path)",
    ],
)
def test_safe_code_is_left_alone(source):
    assert not unsafe(source)
