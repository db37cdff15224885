"""Models and data sets by way of the hub, a stand-in on the loopback address, and again without it.

Commands run in processes of their own, with caches that nothing else uses.
"""

import contextlib
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import hub_repos
import pytest
import samples
import torch
from fresh import Machine
from hub import ACCEPTED, STRANGER, Hub, Repository, sha256_of
from hub_repos import LLAMA, NEVER, QWEN, TINY
from safetensors.torch import load_file

import ia2
from engine import models
from sources import tasks
from support import records

NAMES = {"llama-3.2-1b": LLAMA, "qwen3-4b": QWEN, TINY: TINY}
BENCHMARKS = [task.name for task in tasks.TASKS.values() if task.hub]
QUICK = ("--dataset", "sst2", "--n", "4", "--test", "6", "--epochs", "2")
MEMBER = {"HF_TOKEN": ACCEPTED}  # may read the gated model
GUEST = {"HF_TOKEN": STRANGER}
# What the hub is asked for; telemetry and the like have other paths.
ROUTES = (
    r"/api/(models|datasets|resolve-cache)/|/(datasets/)?[\w.-]+/[\w.-]+/resolve/|/[0-9a-f]{64}$"
)
DOWN = (429, 500, 503, 504)


# ---- the hub, and computers that know no other ---------------------------------------------------


@pytest.fixture(scope="module")
def running_hub():
    with Hub([*hub_repos.models(), *hub_repos.data_sets()]) as hub:
        yield hub


@pytest.fixture(scope="module")
def computers(running_hub, tmp_path_factory):
    """Two with one home: the second one is told that it is offline."""
    home = tmp_path_factory.mktemp("home")
    settings = {"HF_ENDPOINT": running_hub.url, "HF_HOME": str(home / "huggingface")}
    first = Machine(home / "work", **settings)
    second = Machine(home / "work", **settings, HF_HUB_OFFLINE="1")
    yield SimpleNamespace(online=first, offline=second, cache=home / "huggingface")
    first.stop()
    second.stop()


@pytest.fixture(autouse=True)
def hub(running_hub):
    """The hub in order. Afterwards: all that was asked for is what models and data sets need."""
    running_hub.forget()
    yield running_hub
    for request in running_hub.requests:
        assert re.match(ROUTES, request.path), f"the hub was asked for {request.path}"
        assert not any(part in request.path for part in NEVER)
        assert request.server == "hub" or request.authorization is None


@pytest.fixture
def online(computers, hub):
    """A computer with an empty cache, and whether it kept to the hub."""
    shutil.rmtree(computers.cache, ignore_errors=True)
    return Watched(computers.online, hub)


@pytest.fixture
def offline(computers, hub):
    return Watched(computers.offline, hub)


class Watched:
    """A machine whose connections are checked: the hub and its content network, and no other."""

    def __init__(self, machine: Machine, hub: Hub):
        self.machine = machine
        self.allowed = {"127.0.0.1", *(f"('127.0.0.1', {port})" for port in hub.ports.values())}

    def run(self, *words, **settings):
        return self.check(self.machine.run(*words, **settings))

    def call(self, function: str, *arguments, **settings):
        ran = self.check(self.machine.call(f"hub_calls.{function}", *arguments, **settings))
        assert ran.code == 0, ran.err
        return ran.value

    def check(self, ran):
        assert set(ran.addresses) <= self.allowed
        return ran


@contextlib.contextmanager
def stopped(hub: Hub):
    """Inside the block, connections to the hub are refused."""
    hub.stop()
    try:
        yield
    finally:
        hub.start()


def copy_of_tiny(hub: Hub, name: str, **branches) -> Repository:
    """Another repository with the same model."""
    files = dict(hub.repositories["models", TINY].branches["main"])
    repository = Repository(name, {"main": files, **branches})
    hub.repositories["models", name] = repository
    return repository


def weights_link(repository: Repository) -> str:
    """Requests for a repository's weights, as a pattern."""
    return f"GET /{sha256_of(repository.branches['main']['model.safetensors'])}"


def one_sentence(ran) -> str:
    """The error of a command that ended as it should: one line, nothing else."""
    assert ran.code == 2
    assert ran.out == ""
    lines = ran.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0]
    assert "Traceback" not in ran.err
    return errors[0]


def rows_of(computer, out: str) -> list[dict]:
    """A command's result rows without what differs from run to run."""
    rows = records.read_rows(computer.machine.folder / out / "results.jsonl")
    for row in rows:
        for key in ("command", "seconds", "stages", "peak_memory_gb"):
            row.pop(key, None)
    return rows


# ---- the commands of the README ------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_model_runs_by_its_name_and_again_without_the_hub(name, online, offline, hub):
    words = ("--model", name, *QUICK)
    first = online.run(*words, "--out", "first", **MEMBER)
    assert first.code == 0, first.err
    assert "Traceback" not in first.err and "arning" not in first.err
    rows = rows_of(online, "first")
    assert [row["method"] for row in rows] == ["base", "icl", "sft", "ia2", "ia2-sft"]
    for row in rows:
        assert row["model_hash"] == f"commit:{hub.commit(NAMES[name])}"
        assert row["dtype"] == "bfloat16"
        assert row["source"].startswith("hub:stanfordnlp/sst2@")
    hub.forget()
    again = offline.run(*words, "--out", "offline")
    assert again.code == 0, again.err
    with stopped(hub):
        cut_off = online.run(*words, "--out", "stopped")
    assert cut_off.code == 0, cut_off.err
    assert cut_off.seconds < 15
    assert rows_of(online, "offline") == rows_of(online, "stopped") == rows
    assert not hub.requests
