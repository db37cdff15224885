"""Fresh processes for tests, without the seconds that imports take.

The libraries read HF_HOME, HF_ENDPOINT and the like when they are imported, so each place that is
tested needs processes of its own. A `Machine` is one that has imported all that a command needs and
has done nothing else. It forks for every command, so that none sees what others left in memory.

    machine = Machine(folder, HF_ENDPOINT=url, ...)
    machine.run("--model", "someone/tiny")   `python ia2.py --model someone/tiny`
    machine.call("calls.double", 4)          what a function of a module of the tests returns
"""

import contextlib
import importlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT = 300  # seconds of a command at most
SETTINGS = ("HF_", "HUGGING", "TRANSFORMERS_", "IA2_PLAIN", "XDG_CACHE", "PYTEST")
# Slow to import, and the same wherever the hub is.
SLOW = ("pandas", "pyarrow.dataset", "pyarrow.parquet", "fsspec", "dill")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str
    seconds: float
    addresses: list[str]  # to which it tried to connect, and names that it looked up
    value: object = None  # what a function returned


class Machine:
    """A process that forks for every command, and the folder that its commands run in."""

    def __init__(self, folder: Path, **settings: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        environment = {}
        for key, value in os.environ.items():
            if not key.startswith(SETTINGS) and not key.lower().endswith("_proxy"):
                environment[key] = value
        environment.update(settings, PYTHONPATH=str(ROOT), TOKENIZERS_PARALLELISM="false")
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(self, *words, **settings: str) -> Ran:
        """`python ia2.py` with these words; `settings` are added to the environment."""
        return self.send({"words": [str(word) for word in words]}, settings)

    def call(self, function: str, *arguments, **settings: str) -> Ran:
        """`module.function` with these arguments; they and its value travel as JSON."""
        return self.send({"call": function, "arguments": arguments}, settings)

    def send(self, job: dict, settings: dict[str, str]) -> Ran:
        self.process.stdin.write(json.dumps({**job, "settings": settings}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("the machine ended; its error is on stderr")
        return Ran(**json.loads(answer))


# ---- in the process of the machine ---------------------------------------------------------------


def serve() -> None:
    """Import all that commands need, and fork for each line of the standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    for name in SLOW:
        importlib.import_module(name)
    importlib.import_module("ia2")
    for family in FAMILIES:
        importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            child = os.fork()
            if child == 0:
                work(json.loads(line), Path(folder))
            _, status = os.waitpid(child, 0)
            answer = {
                "code": os.waitstatus_to_exitcode(status),
                "seconds": time.perf_counter() - start,
                "out": Path(folder, "out").read_text(),
                "err": Path(folder, "err").read_text(),
            }
            left = Path(folder, "left")
            answer.update(json.loads(left.read_text()) if left.exists() else {"addresses": []})
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # nothing to clear up


def work(job: dict, folder: Path) -> None:
    """Run one job in the forked process, and end it with the job's exit code."""
    signal.alarm(LIMIT)
    for file, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), file.fileno())
    sys.stdin = io.StringIO()
    addresses = record_addresses()
    os.environ.update(job["settings"])
    left = {"addresses": addresses}
    code = 1
    try:
        if "words" in job:
            sys.argv = ["ia2.py", *job["words"]]
            runpy.run_path(str(ROOT / "ia2.py"), run_name="__main__")
        else:
            module, _, name = job["call"].rpartition(".")
            function = getattr(importlib.import_module(module), name)
            left["value"] = function(*job["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    (folder / "left").write_text(json.dumps(left))
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code or 0)


def record_addresses() -> list[str]:
    """A list to which every attempt to connect or to look up a name is added."""
    addresses = []

    def hook(event: str, arguments: tuple) -> None:
        if event == "socket.connect":
            addresses.append(str(arguments[1]))
        elif event == "socket.getaddrinfo":
            addresses.append(str(arguments[0]))

    sys.addaudithook(hook)
    return addresses


if __name__ == "__main__":
    serve()
