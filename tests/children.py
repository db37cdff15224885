"""`python -m lab.sweep` in processes of its own, without the seconds that imports take: they fork
from a process that has imported everything and has done nothing more.

    child = start("--epochs", 2, before=obey_permissions)
    child.end().err
"""

import ctypes
import multiprocessing
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import lora
from lab import sweep
from support import cli

ROOT = Path(__file__).parent.parent
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lab.sweep"])
# Of linux/capability.h.
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1


@dataclass
class Ended:
    """What a child left."""

    code: int
    err: str


class Child:
    """A process that runs, and the pipe that its stderr goes into."""

    def __init__(self, words, before, cache):
        self.pipe, theirs = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=work, args=(words, theirs, before, cache))
        self.process.start()
        theirs.close()

    def end(self) -> Ended:
        """Wait for it."""
        with open(self.pipe.fileno(), closefd=False) as pipe:
            err = pipe.read()
        self.process.join()
        return Ended(self.process.exitcode, err)


def start(*words, before=None, cache=None) -> Child:
    """`python -m lab.sweep` with these words; `before` is called in the process at its start."""
    return Child([str(word) for word in words], before, cache)


def work(words: list[str], stderr, before, cache) -> None:
    """What the process does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(stderr.fileno(), 2)
    stderr.close()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    if cache:
        os.environ["IA2_CACHE"] = str(cache)
    if before:
        before()
    sys.argv = ["sweep.py", *words]
    sys.exit(cli.run_main(sweep.main, lora.LoRAError))


# ---- `before` ------------------------------------------------------------------------------------


def obey_permissions() -> None:
    """Root, too, may not write where the permissions forbid it."""
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)  # of this process
    # effective, permitted and inheritable capabilities, the first 32 and then the next
    sets = (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for i in (0, 1):  # what may be done now, and what may be allowed again
        sets[i] &= ~(1 << CAP_DAC_OVERRIDE)
    libc.capset(header, sets)


def limit_files(size: int) -> None:
    """No file grows beyond `size` bytes; writing on fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
