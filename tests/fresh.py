"""Fresh processes for tests, without the seconds that imports take.

The libraries read HF_HOME, HF_ENDPOINT and the like when they are imported, so each place that is
tested needs processes of its own. A `Trunk` is one that has imported what reads none of these. A
`Machine` branches off: it gets its settings, imports all else that a command needs, and has done
nothing more. It forks for every command, so that none sees what others left in memory.

    with Trunk() as trunk, Machine(trunk, folder, HF_ENDPOINT=url) as machine:
        machine.run("--model", "someone/tiny")   `python ia2.py --model someone/tiny`
        machine.call("calls.double", 4)          what a function of a module of the tests returns
        machine.call("calls.fetch", **HASTE)     the same, with short pauses between attempts
"""

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
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
COMMON = (
    "torch",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "scipy.io",
    "scipy.stats",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "PIL.ImageOps",
    "fsspec",
    "dill",
)
READ_SETTINGS = ("datasets", "huggingface_hub", "tokenizers", "transformers")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
# A setting: what sleeps, as libraries do before they try again, sleeps a twentieth as long.
HASTE = {"HASTE": "1"}


@dataclass(frozen=True)
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str
    seconds: float
    addresses: list[str]  # to which it tried to connect, and names that it looked up
    value: object = None  # what a function returned


class Trunk:
    """The process from which machines branch off. It imports while others go on."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.address = str(Path(self.folder.name, "trunk"))
        environment = {}
        for key, value in os.environ.items():
            if not key.startswith(SETTINGS) and not key.lower().endswith("_proxy"):
                environment[key] = value
        environment.update(PYTHONPATH=str(ROOT), TOKENIZERS_PARALLELISM="false")
        environment["OMP_NUM_THREADS"] = "1"  # machines run side by side, with tiny models
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen()
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno())],
                env=environment,
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


class Machine:
    """A process that forks for every command, and the folder that its commands run in.

    It starts with its first command, or before with `start`, which does not wait for it.
    """

    def __init__(self, trunk: Trunk, folder: Path, **settings: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.trunk = trunk
        self.folder = folder
        self.settings = settings
        self.pipe = None

    def start(self) -> None:
        if self.pipe is None:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(self.trunk.address)
                self.pipe = connection.makefile("rw")
            self.write({"folder": str(self.folder), "settings": self.settings})

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.pipe is not None:
            self.pipe.close()

    def run(self, *words, **settings: str) -> Ran:
        """`python ia2.py` with these words; `settings` are added to the environment."""
        return self.send({"words": [str(word) for word in words]}, settings)

    def call(self, function: str, *arguments, **settings: str) -> Ran:
        """`module.function` with these arguments; they and its value travel as JSON."""
        return self.send({"call": function, "arguments": arguments}, settings)

    def send(self, job: dict, settings: dict[str, str]) -> Ran:
        self.start()
        self.write({**job, "settings": settings})
        answer = self.pipe.readline()
        if not answer:
            raise RuntimeError("the machine ended; its error is on stderr")
        return Ran(**json.loads(answer))

    def write(self, value: dict) -> None:
        self.pipe.write(json.dumps(value) + "\n")
        self.pipe.flush()


# ---- in the processes ----------------------------------------------------------------------------


def branch(listener: socket.socket) -> None:
    """The trunk: import what machines have in common, and fork for each that connects, until the
    standard input ends.
    """
    os.dup2(2, 1)  # what libraries print is for nobody
    gc.disable()  # for imports it finds nothing, and in forks it would touch each page
    for name in COMMON:
        importlib.import_module(name)
    assert not set(READ_SETTINGS) & set(sys.modules)
    machines = []
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        machines.append(os.fork())
        if machines[-1] == 0:
            listener.close()
            serve(connection.makefile("rw"))
            os._exit(0)  # nothing to clear up
        connection.close()
    for machine in machines:
        os.kill(machine, signal.SIGTERM)
        os.waitpid(machine, 0)
    os._exit(0)


def serve(pipe) -> None:
    """A machine: import all that commands need, and fork for each job that comes."""
    start = json.loads(pipe.readline())
    os.environ.update(start["settings"])
    os.chdir(start["folder"])
    for name in ("ia2", "datasets"):
        importlib.import_module(name)
    for family in FAMILIES:
        importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    # What transformers builds before it loads a first model: a thousand patterns, always the same.
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("")
    gc.freeze()
    for line in pipe:
        pipe.write(json.dumps(run_job(json.loads(line))) + "\n")
        pipe.flush()


def run_job(job: dict) -> dict:
    """What a job leaves that runs in a forked process: the fields of a `Ran`."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        child = os.fork()
        if child == 0:
            work(job, Path(folder))
        _, status = os.waitpid(child, 0)
        answer = {
            "code": os.waitstatus_to_exitcode(status),
            "seconds": time.perf_counter() - start,
            "out": Path(folder, "out").read_text(),
            "err": Path(folder, "err").read_text(),
        }
        left = Path(folder, "left")
        answer.update(json.loads(left.read_text()) if left.exists() else {"addresses": []})
    return answer


def work(job: dict, folder: Path) -> None:
    """Run one job in the forked process, and end it with the job's exit code."""
    signal.alarm(LIMIT)
    gc.enable()
    for file, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), file.fileno())
    sys.stdin = io.StringIO()
    addresses = record_addresses()
    os.environ.update(job["settings"])
    if HASTE.items() <= job["settings"].items():
        sleep = time.sleep
        time.sleep = lambda seconds: sleep(seconds / 20)
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
    branch(socket.socket(fileno=int(sys.argv[1])))
