"""math-verify in a helper process: whether two formulas are equal, within a time limit.

A short formula can keep sympy busy for ever, so it is asked in a process that can be stopped.
"""

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

TIME_LIMIT = 3.0  # seconds a comparison
START_LIMIT = 120.0  # seconds to import sympy, once
MEMORY_LIMIT = 4 * 2**30  # bytes of address space


class Helper:
    """Runs this file as a process that compares formulas: a line of JSON in, a line out.

    A process can be stopped in the middle of a computation; a thread, or a signal handler while
    a product of huge integers is under way, cannot. The helper is started at the first formula,
    again after one that overran, and ends with this process.
    """

    def __init__(self) -> None:
        self.process = None
        self.owner = None  # the process that started it: a fork must not share its pipes
        self.lock = threading.Lock()

    def ask(self, *question: object) -> object:
        """The helper's reply, or None where it does not come within the limit."""
        with self.lock:
            try:
                if not self.running():
                    self.start()
                return self.reply(json.dumps(question), TIME_LIMIT)
            except BaseException:  # after Ctrl-C, a reply that nobody has read must not stay
                self.stop()
                raise

    def running(self) -> bool:
        return (
            self.owner == os.getpid() and self.process is not None and self.process.poll() is None
        )

    def start(self) -> None:
        """Start the process and wait until it has imported math-verify. Raises UserError."""
        self.process = subprocess.Popen(
            [sys.executable, "-P", os.path.abspath(__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the command alone
        )
        self.owner = os.getpid()
        problem = self.reply("null", START_LIMIT)
        if problem == "":
            return
        from support.cli import UserError  # not at the top: the helper runs this file alone

        raise UserError(
            f"math-verify, which compares formulas, does not start ({problem or 'no reply'}); "
            "install the packages of requirements.txt"
        )

    def reply(self, line: str, limit: float) -> object:
        """The reply to a line of JSON; None, and the process is stopped, after `limit` seconds."""
        timer = threading.Timer(limit, self.process.kill)
        timer.daemon = True
        timer.start()
        reply = ""
        with contextlib.suppress(OSError):  # the process has ended
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            reply = self.process.stdout.readline()
        timer.cancel()
        if reply.endswith("\n"):
            return json.loads(reply)
        self.stop()
        return None

    def stop(self) -> None:
        process = self.process
        self.process = None
        if process is None or self.owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


HELPER = Helper()
atexit.register(HELPER.stop)


@functools.lru_cache(maxsize=2**14)  # an odd answer that many methods give overruns once
def ask_helper(expected: str, predicted: str, places: int) -> bool:
    """Whether math-verify finds two formulas equal; False where it takes too long."""
    return HELPER.ask(expected, predicted, places) is True


def serve() -> None:
    """The helper: reply to the first line when math-verify is there, then to each question."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout = sys.stderr  # what a library prints is no answer
    limit_memory()
    sys.stdin.readline()
    try:
        compare = load_comparison()
        compare(r"\frac{\sqrt{3}}{2}", "x^2+1", 6)  # the first one is slow, and no answer's fault
        problem = ""
    except Exception as error:
        problem = str(error) or type(error).__name__
    print(json.dumps(problem), file=replies, flush=True)
    for line in sys.stdin:
        end_after(TIME_LIMIT + 2)  # nobody stops it where the command was killed meanwhile
        print(json.dumps(compare(*json.loads(line))), file=replies, flush=True)
        end_after(0)


def limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))


def end_after(seconds: float) -> None:
    """Have the system end this process, even within one long product; 0 calls it off."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def load_comparison() -> Callable[[str, str, int], bool]:
    """The comparison of two formulas by math-verify, which takes a second to import."""
    import logging

    import sympy
    from latex2sympy2_extended import NormalizationConfig, latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify import verify

    logging.disable(logging.CRITICAL)  # it warns that its own time limits are off
    # Units are taken off before: math-verify takes the m of 5m for one.
    tidy = NormalizationConfig(malformed_operators=True, nits=True, boxed="none")
    conversion = ConversionConfig(lowercase_symbols=False)

    def read(text: str) -> sympy.Basic:
        formula = latex2sympy(
            text, is_real=True, normalization_config=tidy, conversion_config=conversion
        )
        return formula.xreplace({sympy.Symbol("i", real=True): sympy.I})

    def compare(expected: str, predicted: str, places: int) -> bool:
        try:
            sides = read(expected), read(predicted)
            precision = {"float_rounding": places, "numeric_precision": places + 15}
            return bool(verify(*sides, **precision, timeout_seconds=None))
        except Exception:  # whatever a text that is no formula makes of sympy
            return False

    return compare


if __name__ == "__main__":
    serve()
