"""The command line: options and their types, and errors that are one line on stderr."""

import argparse
import contextlib
import functools
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches

import torch
from safetensors import SafetensorError

LABEL_STYLES = ("digits", "words", "remap")  # how labels are written


class UserError(Exception):
    """Something the user can fix: one sentence that says what is wrong and what to do."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on stderr, with exit code 2."""

    def error(self, message: str):
        log(f"error: {message}")
        sys.exit(2)


def log(*words) -> None:
    """Print on stderr, so that stdout holds results only."""
    print(*words, file=sys.stderr, flush=True)


def suggest(text: str, known) -> str:
    """A hint at the known name that is nearest to `text`, or nothing."""
    near = get_close_matches(text, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


# ---- running a command ---------------------------------------------------------------------------


def run_main(main: Callable[[], None], *errors: type[Exception]) -> int:
    """Run a command and return its exit code.

    What the user can fix, `errors` among it, is one line on stderr and exit code 2. A reader of
    stdout that leaves early (`| head`) ends the command quietly.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a name that stdout's encoding lacks is written escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
        return 0
    except BrokenPipeError as error:
        if reader_is_gone():
            silence_stdout()
            return 0
        problem = error
    except torch.OutOfMemoryError:
        problem = (
            "the GPU is out of memory; use a smaller --n or --max-tokens, or a smaller --model"
        )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        problem = "this machine is out of memory; use a smaller --n, --max-tokens or --model"
    except (UserError, *errors) as error:
        problem = error
    except (OSError, SafetensorError) as error:  # a full disk, a folder taken away
        problem = f"{error}; fix that and run the same command again: completed work is kept"
    except KeyboardInterrupt:
        problem = "interrupted; completed work is kept"
    log(f"error: {problem}")
    return 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the CPU's memory does not suffice: torch has no class of its own for that."""
    says_so = "not enough memory" in str(error) or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and says_so)


def reader_is_gone() -> bool:
    """Whether nobody reads stdout any more: pipes to other processes break, too."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def silence_stdout() -> None:
    """Let what Python still flushes at its end go nowhere."""
    with contextlib.suppress(OSError, ValueError):  # a stdout that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command_line(program: str, argv: Sequence[str] | None = None) -> str:
    """The command that is running, as it is written down in results.

    `program` is what stands behind `python`: `ia2.py`, or `-m lab.sweep`. `argv` are the options
    that its main was called with, in a notebook for example; by default the process's own.
    """
    words = sys.argv[1:] if argv is None else [str(word) for word in argv]
    return shlex.join(["python", *program.split(), *words])


def in_order(given: float | list[float]) -> list[float]:
    """The values of an option that takes one or more, none twice."""
    return sorted(set(given)) if isinstance(given, list) else [given]


def set_numbers(number: int | None, count: int | None) -> list[int]:
    """The few-shot sets that --set and --sets ask for. Raises UserError for both options."""
    if number is not None and count is not None:
        raise UserError(f"--set {number} and --sets {count} are two choices of sets; give one")
    return [number or 0] if count is None else list(range(count))


# ---- types of options ----------------------------------------------------------------------------


def int_at_least(low: int, text: str) -> int:
    """An option's type: a whole number, `low` or more, of nine digits at most."""
    if not re.fullmatch(r"[0-9]+", text) or int(text) < low:
        raise argparse.ArgumentTypeError(f"must be a whole number of {low} or more, not {text!r}")
    if len(text) > 9:
        raise argparse.ArgumentTypeError(f"must be at most 999999999, not {text!r}")
    return int(text)


positive_int = functools.partial(int_at_least, 1)
non_negative_int = functools.partial(int_at_least, 0)


def learning_rate(text: str) -> float:
    """An option's type: a number above zero that float32 arithmetic can take."""
    number = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", text, re.IGNORECASE)
    if not number or not 0 < float(text) <= 1e30:
        raise argparse.ArgumentTypeError(
            f"must be a number above 0 and at most 1e+30, not {text!r}"
        )
    return float(text)


# ---- the options of a run ------------------------------------------------------------------------


def experiment_parser(
    description: str,
    methods: Sequence[str],
    default_methods: Sequence[str],
    several: bool = False,
    leave_out: Sequence[str] = (),
) -> Parser:
    """The options of one run; with `several`, those of many: --sets, more than one --n and --lr.

    `methods` are those that --methods takes. Options named in `leave_out` are not there.
    """
    parser = Parser(description=description, allow_abbrev=False)

    def add(name, **details):
        if name not in leave_out:
            parser.add_argument(name, **details)

    many = "+" if several else None
    add_data_options(add, many)
    add_model_options(add)
    if several:
        parser.set_defaults(set=None)  # or --sets
        sets = "random few-shot sets 0 to K - 1 (--set alone)"
        add("--sets", type=positive_int, metavar="K", help=sets)
        add(
            "--dtype",
            choices=("auto", "float32", "bfloat16"),
            default="auto",
            help="of the model: rows of two are never averaged (auto: what is fast here)",
        )
    add_training_options(add, many)
    add(
        "--methods",
        nargs="+",
        choices=methods,
        default=list(default_methods),
        metavar="METHOD",
        help=f"of {', '.join(methods)}; base and icl are always there",
    )
    add("--out", default="runs", metavar="DIR", help="where results and adapters go (runs)")
    add("--seed", type=non_negative_int, default=0, help="the seed of everything random (0)")
    return parser


def add_data_options(add: Callable, many: str | None) -> None:
    """What is learned from, and what is tested on."""
    add(
        "--dataset",
        default="sst2",
        help="a task's name, or a folder with train.jsonl and test.jsonl (sst2)",
    )
    add("--eval", nargs="+", metavar="NAME", help="tasks to test on (the training task)")
    add("--n", type=positive_int, nargs=many, default=4, help="few-shot examples (4)")
    add("--set", type=non_negative_int, default=0, help="which of the random few-shot sets (0)")
    add(
        "--balanced",
        action=argparse.BooleanOptionalAction,
        help="equal label counts (the model's way)",
    )
    add(
        "--labels",
        choices=LABEL_STYLES,
        help="how labels are written (the task's or the model's way)",
    )
    add("--test", type=positive_int, default=200, help="test queries of a task (200)")
    folder = "local copies of the benchmarks, DIR/<name>/{train,test}.jsonl"
    add("--data-dir", metavar="DIR", help=folder)
    tokens = "response tokens of free-text tasks at most (200)"
    add("--max-tokens", type=positive_int, help=tokens)


def add_model_options(add: Callable) -> None:
    """What runs, and where."""
    add("--model", default="auto", help="a model's name, hub id or folder (auto)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(auto)")


def add_training_options(add: Callable, many: str | None) -> None:
    """How a stage is trained."""
    add("--lr", type=learning_rate, nargs=many, default=3e-4, help="learning rate (3e-4)")
    add("--epochs", type=positive_int, default=50, help="epochs of a stage at most (50)")
    add(
        "--keep",
        choices=("best", "last"),
        default="best",
        help="the adapter of a stage that is kept: with the lowest dev loss, or the last (best)",
    )
    add("--rank", type=positive_int, default=8, help="the adapter's rank; alpha is the same (8)")
