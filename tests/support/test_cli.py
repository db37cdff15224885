"""pytest tests/support/test_cli.py: options, their errors, and how a command ends."""

import io
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

import data
import ia2
from engine import models
from lab import sweep
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
        "--seed 1000000000",
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        parser().parse_args(words.split())
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
    assert "1000000000" not in words or "at most 999999999" in lines[0]


@pytest.mark.parametrize("text, number", [("1", 1.0), ("3e-4", 3e-4), (".5", 0.5), ("1.", 1.0)])
def test_learning_rates_are_numbers_above_zero(text, number):
    assert cli.learning_rate(text) == number


def test_sets_are_given_in_one_way():
    assert cli.set_numbers(None, None) == [0]
    assert cli.set_numbers(7, None) == [7]
    assert cli.set_numbers(None, 3) == [0, 1, 2]
    with pytest.raises(cli.UserError, match="--set 7 and --sets 3 are two choices of sets"):
        cli.set_numbers(7, 3)


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


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_a_lack_of_memory_is_one_sentence(error, capsys):
    def main():
        raise error

    assert cli.run_main(main) == 2
    assert capsys.readouterr().err.startswith("error: this machine is out of memory; use a smaller")


# torch, which takes seconds to import and does nothing here, is left out.
SCRIPT = """
import sys, types
sys.modules["torch"] = types.SimpleNamespace(OutOfMemoryError=MemoryError)
sys.path.insert(0, {root!r})
from support import cli
def main():
    {body}
sys.exit(cli.run_main(main))
"""


def child(body, **options):
    command = [sys.executable, "-c", SCRIPT.format(root=str(ROOT), body=body)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize(
    "body",
    [
        "for i in range(10**6): print('a line of text', i)",
        "print('first', flush=True); print('a line of text\\n' * 10**6)",
        "print('first', flush=True); sys.stdin.read(); print('last')",  # kept back until the end
    ],
)
def test_a_reader_that_leaves_early_ends_the_command_quietly(body):
    process = child(body, stdin=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    process.stdin.close()
    error = process.stderr.read()
    assert (process.wait(), error) == (0, b"")


def test_a_pipe_to_another_process_that_breaks_is_an_error():
    process = child("raise BrokenPipeError(32, 'Broken pipe')")
    _, error = process.communicate()
    assert process.returncode == 2 and error.startswith(b"error: [Errno 32] Broken pipe")


@pytest.mark.parametrize(
    "encoding, text, shown",
    [
        ("ascii", "tâche", b"t\\xe2che"),
        ("latin-1", "tâche 任务", b"t\xe2che \\u4efb\\u52a1"),
        ("cp1251", "задача ½ 😀", "задача ".encode("cp1251") + b"\\xbd \\U0001f600"),
    ],
)
def test_an_output_that_is_not_utf8_does_not_stop_the_table(encoding, text, shown):
    process = child(f"print({text!r})", env={"PYTHONIOENCODING": encoding, "PATH": ""})
    out, error = process.communicate()
    assert process.returncode == 0 and out.strip() == shown, error


@pytest.mark.parametrize(
    "name, expected", [("sst3", "sst2"), ("sts2", "sst2"), ("gsm8", "gsm8k"), ("zzz", "")]
)
def test_the_nearest_name_is_suggested(name, expected):
    hint = cli.suggest(name, ["sst2", "gsm8k"])
    assert hint == (f" (did you mean {expected}?)" if expected else "")


def test_the_command_that_is_written_down_is_the_one_that_ran(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/ia2.py", "--n", "4", "--dataset", "my task"])
    assert cli.command_line("ia2.py") == "python ia2.py --n 4 --dataset 'my task'"
    assert cli.command_line("-m lab.sweep") == "python -m lab.sweep --n 4 --dataset 'my task'"
    assert cli.command_line("ia2.py", ["--n", 8]) == "python ia2.py --n 8"


@pytest.mark.parametrize(
    "script",
    [
        "/usr/lib/python3/site-packages/ipykernel_launcher.py",  # a notebook
        "-c",
        "",  # an interactive session
        "/usr/lib/python3/pdb.py",
        "/usr/bin/pytest",
    ],
)
@pytest.mark.parametrize(
    "main, program", [(ia2.main, "ia2.py"), (sweep.main, "-m lab.sweep")], ids=["ia2", "sweep"]
)
def test_a_main_called_from_elsewhere_writes_down_its_own_command(
    main, program, script, monkeypatch, tmp_path
):
    """It runs up to where it takes down its command."""
    written = []

    def keep(out, settings, command, *rest):
        written.append(command)
        raise StopIteration

    monkeypatch.setattr("sys.argv", [script, "-f", "kernel.json"])
    monkeypatch.setattr(models, "find", MagicMock())
    monkeypatch.setattr(data, "load_with_tests", lambda *words: (MagicMock(), []))
    monkeypatch.setattr(data, "few_shot_set", MagicMock())
    monkeypatch.setattr(data, "training_settings", lambda *words: {})
    monkeypatch.setattr(ia2, "set_up", lambda *words: MagicMock(settings={}))
    monkeypatch.setattr(ia2, "Results", keep)
    monkeypatch.setattr(sweep, "Sweep", lambda **fields: keep("", {}, fields["command"]))
    with pytest.raises(StopIteration):
        main(["--dataset", "my task", "--n", "2", "--out", str(tmp_path)])
    assert written == [f"python {program} --dataset 'my task' --n 2 --out {tmp_path}"]


def test_results_only_go_to_stdout(monkeypatch, capsys):
    cli.log("a", 1)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "a 1\n")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert cli.run_main(lambda: print("x")) == 0
