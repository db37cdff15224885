"""pytest tests/lab/test_house.py: imports go down only, each floor knows its duty, and functions
stay short.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = {"ia2", "lora", "data", "metrics"}
FOLDERS = ("engine", "sources", "support", "lab")
FILES = [*ROOT.glob("*.py"), *(path for name in FOLDERS for path in ROOT.glob(f"{name}/*.py"))]
TESTS = sorted(ROOT.glob("tests/**/*.py"))
ALLOWED = {  # floor: the floors that it may import from
    "lora": set(),
    "metrics": set(),
    "support": {"support"},
    "sources": {"sources", "support"},
    "engine": {"engine", "lora", "sources", "support"},
    "data": {"sources", "support"},
    "ia2": {"data", "lora", "metrics", "engine", "sources", "support"},
    "lab": {"lab", "ia2", "data", "lora", "metrics", "engine", "sources", "support"},
}
LONGEST = 40  # lines of a function


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    """The modules of ours that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & {name_of(other) for other in FILES} - {name_of(path)}


def names(path):
    return path.relative_to(ROOT).as_posix()


# ---- floors --------------------------------------------------------------------------------------


def test_the_four_scripts_stand_at_the_top_and_the_folders_below():
    assert {path.stem for path in ROOT.glob("*.py")} == CORE
    folders = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests"}
    assert folders == set(FOLDERS)


@pytest.mark.parametrize("path", FILES, ids=names)
def test_imports_go_down_only(path):
    floor = name_of(path).split(".")[0]
    assert {other.split(".")[0] for other in imports(path)} <= ALLOWED[floor]


def circle(graph):
    """The modules that import each other in a circle; none if there is no circle."""
    left = dict(graph)
    while left:
        leaves = [name for name, below in left.items() if not below & set(left)]
        if not leaves:
            break
        for name in leaves:
            del left[name]
    return set(left)


def test_there_is_no_circle():
    assert circle({name_of(path): imports(path) for path in FILES}) == set()
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}


# ---- duties --------------------------------------------------------------------------------------

METHOD_WORDS = {"ia2", "sft", "icl"}
METHOD_TEXT = re.compile(r"sft|icl|ia2[-+]\w+")  # "ia2" alone is the project's name


def known_methods(path):
    """Names in a file's code that speak of a method, and texts that are one's name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and METHOD_TEXT.fullmatch(node.value):
            found.append(node.value)
        for field in ("id", "arg", "attr", "name"):
            name = getattr(node, field, None)
            if isinstance(name, str) and METHOD_WORDS & set(name.lower().split("_")):
                found.append(name)
    return found


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.parent.name in FOLDERS[:3]], ids=names
)
def test_below_the_paper_nothing_knows_a_method(path):
    assert known_methods(path) == []


def test_a_method_below_the_paper_would_be_seen(tmp_path):
    file = tmp_path / "code.py"
    for text in ("def sft_loss(): ...", "x = icl", "METHODS = ('ia2-sft',)", "f(icl=1)", "a.ia2"):
        file.write_text(text)
        assert known_methods(file), text
    file.write_text('"""Of sft and icl."""\nCACHE = "ia2"\nfew_shot = 1  # not icl\n')
    assert known_methods(file) == []


# ---- size ----------------------------------------------------------------------------------------


def long_functions(path):
    """{name: lines without the docstring} of the functions that are too long to be read at once."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            if lines > LONGEST:
                found[node.name] = lines
    return found


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=names)
def test_functions_can_be_read_at_once(path):
    """Complexity, line length and the number of arguments are ruff's to check."""
    assert long_functions(path) == {}


def test_a_long_function_would_be_seen(tmp_path):
    file = tmp_path / "code.py"
    file.write_text(
        "def short():\n" + "    x = 1\n" * 39 + "\n\ndef long():\n" + "    x = 1\n" * 40
    )
    assert long_functions(file) == {"long": 41}
