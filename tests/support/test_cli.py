"""pytest tests/support/test_cli.py: options, their errors, and how a command ends."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from support import cli

ROOT = Path(__file__).parents[2]


def parser(**details):
    return cli.experiment_parser("A run.", ("one", "two"), ("one",), **details)


def test_options_have_their_defaults_and_take_several_values_where_asked():
    args = parser().parse_args([])
    assert (args.dataset, args.n, args.lr, args.methods, args.keep) == (
        "sst2",
        4,
        3e-4,
        ["one"],
        "best",
    )
    args = parser(several=True).parse_args(["--n", "2", "4", "--lr", "1e-4"])
    assert (args.n, args.lr) == ([2, 4], [1e-4])
    assert not hasattr(parser(leave_out=("--out",)).parse_args([]), "out")


@pytest.mark.parametrize(
    "words",
    [
        "--n 0",
        "--n 2.5",
        "--n -3",
        "--set -1",
        "--lr 0",
        "--lr nan",
        "--lr inf",
        "--lr 1e31",
        "--lr -1e-3",
        "--methods three",
        "--keep first",
        "--mod x",
        "--seed 1e3",
        "--rank ٣",
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        parser().parse_args(words.split())
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: ")


@pytest.mark.parametrize("text, number", [("1", 1.0), ("3e-4", 3e-4), (".5", 0.5), ("1.", 1.0)])
def test_learning_rates_are_numbers_above_zero(text, number):
    assert cli.learning_rate(text) == number


@pytest.mark.parametrize(
    "error, line",
    [
        (cli.UserError("do that"), "error: do that"),
        (OSError(28, "No space left on device"), "error: [Errno 28] No space left"),
        (KeyboardInterrupt(), "error: interrupted; completed work is kept"),
        (ZeroDivisionError("x"), "error: x"),
    ],
)
def test_what_the_user_can_fix_is_one_line(error, line, capsys):
    def main():
        raise error

    assert cli.run_main(main, ZeroDivisionError) == 2
    assert capsys.readouterr().err.startswith(line)


def test_other_errors_are_not_hidden():
    def main():
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError):
        cli.run_main(main)


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from support import cli
def main():
    {body}
sys.exit(cli.run_main(main))
"""


def child(body, **options):
    command = [sys.executable, "-c", SCRIPT.format(root=str(ROOT), body=body)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_a_reader_that_leaves_early_ends_the_command_quietly():
    process = child("for i in range(10**6): print('a line of text', i)")
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    assert (process.wait(), error) == (0, b"")


def test_a_pipe_to_another_process_that_breaks_is_an_error():
    process = child("raise BrokenPipeError(32, 'Broken pipe')")
    _, error = process.communicate()
    assert process.returncode == 2 and error.startswith(b"error: [Errno 32] Broken pipe")


def test_an_output_that_is_not_utf8_does_not_stop_the_table():
    process = child("print('tâche')", env={"PYTHONIOENCODING": "ascii", "PATH": ""})
    out, error = process.communicate()
    assert process.returncode == 0 and out.startswith(b"t\\xe2che"), error


@pytest.mark.parametrize(
    "name, expected", [("sst3", "sst2"), ("sts2", "sst2"), ("gsm8", "gsm8k"), ("zzz", "")]
)
def test_the_nearest_name_is_suggested(name, expected):
    hint = cli.suggest(name, ["sst2", "gsm8k"])
    assert hint == (f" (did you mean {expected}?)" if expected else "")


def test_the_command_that_is_written_down_is_the_one_that_ran(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/ia2.py", "--n", "4", "--dataset", "my task"])
    monkeypatch.setattr("sys.modules", {**sys.modules, "__main__": type(sys)("__main__")})
    assert cli.command_line() == "python ia2.py --n 4 --dataset 'my task'"
    assert cli.command_line(["--n", 8]) == "python ia2.py --n 8"


WHERE = (
    "import sys; sys.path.insert(0, {root!r}); from support import cli; print(cli.command_line())"
)


@pytest.mark.parametrize(
    "start, command",
    [
        ("room/run.py", "python run.py --n 4"),
        ("-m room.run", "python -m room.run --n 4"),
        ("-m room", "python -m room --n 4"),
        ("-m pdb -c continue room/run.py", "python run.py --n 4"),
        ("-m cProfile room/run.py", "python run.py --n 4"),
    ],
)
def test_a_module_is_told_from_a_script_also_below_a_debugger(start, command, tmp_path):
    room = tmp_path / "room"
    room.mkdir()
    for name in ("run", "__main__"):
        (room / f"{name}.py").write_text(WHERE.format(root=str(ROOT)))
    words = [sys.executable, *start.split(), "--n", "4"]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, input="q\n")
    assert command in ran.stdout.splitlines(), ran.stderr


def test_results_only_go_to_stdout(monkeypatch, capsys):
    cli.log("a", 1)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "a 1\n")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert cli.run_main(lambda: print("x")) == 0
