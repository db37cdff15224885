"""pytest tests/lab/test_house.py: imports go down only, and the house is as small as it is meant to be."""
import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = {"ia2": 330, "lora": 150, "data": 260, "metrics": 130}
FILES = [*(ROOT / f"{name}.py" for name in CORE), *sorted(ROOT.glob("sources/*.py")),
         *sorted(ROOT.glob("lab/*.py"))]


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    """The modules of ours that a file imports, wherever in it."""
    found, names = set(), {name_of(other) for other in FILES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & names - {name_of(path)}


def test_imports_go_down_only():
    allowed = {"lora": set(), "metrics": set(), "data": {"sources"},
               "ia2": {"lora", "data", "metrics", "sources"},
               "sources": {"sources"}, "lab": {"lab", "ia2", "lora", "data", "metrics", "sources"}}
    for path in FILES:
        floor = name_of(path).split(".")[0]
        assert {other.split(".")[0] for other in imports(path)} <= allowed[floor], path


def test_there_is_no_circle():
    graph = {name_of(path): imports(path) for path in FILES}
    while graph:
        leaves = [name for name, below in graph.items() if not below & set(graph)]
        assert leaves, f"a circle among {sorted(graph)}"
        for name in leaves:
            del graph[name]


def test_the_files_are_the_four_and_two_folders_and_stay_short():
    assert {path.stem for path in ROOT.glob("*.py")} == set(CORE)
    lines = {path: len(path.read_text().splitlines()) for path in FILES}
    assert all(lines[ROOT / f"{name}.py"] <= most for name, most in CORE.items())
    assert sum(lines.values()) <= 2700
    for path in FILES:
        assert max(map(len, path.read_text().splitlines()), default=0) <= 110, path
