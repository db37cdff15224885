"""Models and data sets by way of the hub, a stand-in on the loopback address, and again without it.

Commands run in processes of their own, with caches that nothing else uses.
"""

import ast
import contextlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import hub_repos
import pytest
import safetensors.torch
import samples
import torch
from fresh import HASTE, ROOT, Machine, Ran, Trunk
from hub import ACCEPTED, STRANGER, Hub, Repository, sha256_of
from hub_calls import digest_of
from hub_repos import LLAMA, NEVER, QWEN, TINY
from test_evaluation import Homeless

import ia2
from engine import models, snapshots
from sources import tasks
from support import records
from support.cli import UserError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="new processes are forked")

NAMES = {"llama-3.2-1b": LLAMA, "qwen3-4b": QWEN, TINY: TINY}
BENCHMARKS = [task.name for task in tasks.TASKS.values() if task.hub]
FEW = ("--test", "4", "--epochs", "1", "--methods", "ia2-sft")
QUICK = ("--dataset", "sst2", "--n", "4", *FEW)
MEMBER = {"HF_TOKEN": ACCEPTED}  # may read the gated model
GUEST = {"HF_TOKEN": STRANGER}
# What the hub is asked for; telemetry and the like have other paths.
ROUTES = (
    r"/api/(models|datasets|resolve-cache)/|/(datasets/)?[\w.-]+/[\w.-]+/resolve/|/[0-9a-f]{64}$"
)
DOWN = (429, 500, 503, 504)
RATE_LIMIT = {"ratelimit": '"api";r=0;t=300', "Retry-After": "300"}  # nobody waits for that
SOON = 15  # seconds: 4 until a hub counts as out of reach, and some for a busy machine


# ---- the hub, and computers that know no other ---------------------------------------------------


@pytest.fixture(scope="module")
def trunk():
    with Trunk() as trunk:
        yield trunk


@pytest.fixture(scope="module")
def running_hub(trunk):
    """The hub. Its models are made while the trunk imports."""
    with Hub([*hub_repos.models(), *hub_repos.data_sets()]) as hub:
        yield hub


@pytest.fixture(scope="module")
def computers(trunk, running_hub, tmp_path_factory):
    """Three: the second has the home of the first and is told that it is offline, the third keeps
    data sets elsewhere. Two start while tests run that need none of them.
    """
    home = tmp_path_factory.mktemp("home")
    work = home / "work"
    settings = {"HF_ENDPOINT": running_hub.url, "HF_HOME": str(home / "huggingface")}
    with (
        Machine(trunk, work, **settings) as first,
        Machine(trunk, work, **settings, HF_HUB_OFFLINE="1") as second,
        Machine(trunk, work, **settings, HF_DATASETS_CACHE=str(home / "data")) as third,
    ):
        first.start()
        second.start()
        cache = home / "huggingface"
        yield SimpleNamespace(online=first, offline=second, elsewhere=third, cache=cache)


@pytest.fixture(autouse=True)
def hub(running_hub, computers):
    """The hub in order. Afterwards: all that was asked for is what models and data sets need."""
    running_hub.forget()
    yield running_hub
    check_requests(running_hub)


def check_requests(hub: Hub) -> None:
    for request in hub.requests:
        assert re.match(ROUTES, request.path), f"the hub was asked for {request.path}"
        assert not re.search(NEVER, request.path)
        assert request.server == "hub" or request.authorization is None


@pytest.fixture
def online(computers, hub):
    """A computer with an empty cache."""
    shutil.rmtree(computers.cache, ignore_errors=True)
    return Watched(computers.online, hub, computers.cache)


@pytest.fixture
def offline(computers, hub):
    """The same computer without a network."""
    return Watched(computers.offline, hub, computers.cache)


class Watched:
    """A machine whose connections are checked: the hub and its content network, and no other."""

    def __init__(self, machine: Machine, hub: Hub, cache: Path):
        self.machine = machine
        self.cache = cache
        self.allowed = {"127.0.0.1", *(f"('127.0.0.1', {port})" for port in hub.ports.values())}

    def run(self, *words, **settings: str) -> Ran:
        """A command line of ia2.py."""
        return self.check(self.machine.run(*words, **settings))

    def timed(self, function: str, *arguments, **settings: str) -> Ran:
        """A function of `hub_calls`, with the seconds that it took."""
        ran = self.check(self.machine.call(f"hub_calls.{function}", *arguments, **settings))
        assert ran.code == 0, ran.err
        return ran

    def call(self, function: str, *arguments, **settings: str):
        """What a function of `hub_calls` returns."""
        return self.timed(function, *arguments, **settings).value

    def check(self, ran: Ran) -> Ran:
        assert set(ran.addresses) <= self.allowed
        return ran

    def cache_of(self, repository: str) -> Path:
        return self.cache / "hub" / f"models--{repository.replace('/', '--')}"


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


def rows_of(computers, out: str) -> list[dict]:
    """A command's result rows without what differs from run to run."""
    rows = records.read_rows(computers.online.folder / out / "results.jsonl")
    for row in rows:
        for key in ("command", "seconds", "stages", "peak_memory_gb"):
            row.pop(key, None)
    return rows


def folder_of(name: str) -> str:
    """A benchmark's name in `samples`, where two of them may share their rows."""
    return tasks.TASKS[name].folder or name


def where(name: str) -> tuple[str, str]:
    """The repository and the branch that a benchmark's rows are in."""
    hub = tasks.TASKS[name].hub
    return hub.repo, hub.revision or "main"


# ---- a first run on a GPU, as far as a CPU can show it -------------------------------------------


class PretendGPU(Homeless):
    """Takes the CPU for a GPU as well: `cuda` is where tensors are that were sent there or made
    there, and all others are the host's.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = {key: on_the_cpu(value) for key, value in (kwargs or {}).items()}
        args = tuple(on_the_cpu(value) for value in args)
        return super().__torch_function__(func, types, args, kwargs)


def on_the_cpu(value):
    is_gpu = isinstance(value, torch.device) and value.type == "cuda"
    return torch.device("cpu") if is_gpu else value


@pytest.fixture
def gpu(monkeypatch):
    """A GPU with 12 GB, as far as questions about it go."""
    card = SimpleNamespace(name="a small GPU", total_memory=12_600_000_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)


def test_a_first_run_on_a_gpu_is_qwens_in_bfloat16_and_keeps_to_its_device(
    gpu, running_hub, tmp_path, monkeypatch
):
    for path, content in running_hub.repositories["models", QWEN].branches["main"].items():
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / path).write_bytes(content)
    large = models.MODELS["qwen3-4b"]
    monkeypatch.setitem(models.MODELS, "qwen3-4b", replace(large, hub=str(tmp_path / "model")))
    samples.folder(tmp_path / "bench")
    assert models.default_name(torch.device("cuda")) == "qwen3-4b"
    with PretendGPU():
        ia2.main(["--data-dir", str(tmp_path / "bench"), "--out", str(tmp_path / "out"), *QUICK])
    rows = records.read_rows(tmp_path / "out" / "results.jsonl")
    assert {(row["model"], row["dtype"]) for row in rows} == {("qwen3-4b", "bfloat16")}
    adapter = tmp_path / "out" / rows[-1]["run"] / "adapter_model.safetensors"
    weights = safetensors.torch.load_file(adapter)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_a_gpu_without_a_hub_gets_the_bundled_model(gpu, monkeypatch, capsys):
    def no_route(repository):
        raise ConnectionError("no route")

    monkeypatch.setattr(snapshots, "newest_commit", no_route)
    monkeypatch.setattr(snapshots, "cached_snapshot", lambda repository: None)
    assert models.find("auto").name == "smollm2-135m"
    said = capsys.readouterr().err
    assert said.startswith("warning: cannot load the model Qwen/Qwen3-4B-Base (the hub cannot")
    assert said.endswith("smollm2-135m needs no hub, so it takes its place\n")
    with pytest.raises(UserError, match="the hub cannot be reached"):
        models.find("qwen3-4b")  # who names it wants no other


# ---- what libraries do not promise ---------------------------------------------------------------


def test_no_private_name_of_a_library_is_used_but_one():
    """What starts with `_` may be gone in a library's next version; test_cpu.py watches the one."""
    found = set()
    for path in ROOT.glob("*/*.py"):
        if path.parent.name in ("engine", "lab", "sources", "support"):
            found |= private_names(path)
    for path in ROOT.glob("*.py"):
        found |= private_names(path)
    assert found == {"_linear_pointwise"}


def private_names(path: Path) -> set[str]:
    """The names with a `_` in front that a file takes from what is not its own."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            names = [] if own else [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        else:
            continue
        found |= {name for name in names if re.match(r"_[^_]", name)}
    return found


# ---- models --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Commands:
    """The same command online, offline, and where a cable was pulled, of which nobody told."""

    online: Ran
    offline: Ran
    gone: Ran | None


@pytest.fixture(scope="module")
def commands(computers, running_hub):
    """{name: Commands} from an empty cache: a model's offline run and the next model's online run
    go on at the same time.
    """
    running_hub.forget()
    shutil.rmtree(computers.cache, ignore_errors=True)
    online, offline = (
        Watched(machine, running_hub, computers.cache)
        for machine in (computers.online, computers.offline)
    )

    def run(computer, name, kind, **settings):
        out = f"{name.replace('/', '-')}-{kind}"
        return computer.run("--model", name, *QUICK, "--out", out, **settings)

    first = {}
    again = {}
    with ThreadPoolExecutor(1) as threads:
        for name in NAMES:
            first[name] = run(online, name, "online", **MEMBER)
            again[name] = threads.submit(run, offline, name, "offline")
            computers.elsewhere.start()  # it has time until it is needed
        with stopped(running_hub):
            gone = {TINY: run(online, TINY, "gone")}
    check_requests(running_hub)
    return {name: Commands(first[name], again[name].result(), gone.get(name)) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_runs_by_its_name_and_again_offline(name, commands, computers, hub):
    ran = commands[name]
    out = name.replace("/", "-")
    assert ran.online.code == 0, ran.online.err
    assert "warning" not in ran.online.err.lower()
    rows = rows_of(computers, f"{out}-online")
    assert [row["method"] for row in rows] == ["base", "icl", "ia2-sft"]
    for row in rows:
        assert row["model_hash"] == f"commit:{hub.commit(NAMES[name])}"
        assert row["dtype"] == "bfloat16"
        commit = hub.commit("stanfordnlp/sst2", "datasets")
        assert row["source"] == row["eval_source"] == f"hub:stanfordnlp/sst2@{commit[:12]}"
    assert ran.offline.code == 0, ran.offline.err
    assert rows_of(computers, f"{out}-offline") == rows
    assert not ran.offline.addresses
    if ran.gone:
        assert ran.gone.code == 0, ran.gone.err
        assert ran.gone.err.count("warning: the hub cannot be reached") == 2  # model and data
        assert rows_of(computers, f"{out}-gone") == rows


def test_models_are_read_as_their_repositories_mean_it(online):
    qwen, llama, tiny = (online.call("load_model", name, **MEMBER) for name in (QWEN, LLAMA, TINY))
    assert qwen["tokens"][0] == "Text"  # nothing in front
    assert llama["tokens"][:2] == ["<|begin_of_text|>", "Text"]
    assert llama["tokens"].count("<|begin_of_text|>") == 1
    assert tiny["tokens"][:2] == ["<s>", "▁Text:"]
    assert [model["tied"] for model in (qwen, llama, tiny)] == [True, True, False]
    assert {model["dtype"] for model in (qwen, llama, tiny)} == {"torch.bfloat16"}


@pytest.mark.parametrize("name", [QWEN, TINY])  # in three files, and in one
def test_the_weights_are_those_of_the_repository(name, online, hub):
    files = hub.repositories["models", name].branches["main"]
    state = {}
    for path, content in files.items():
        if path.startswith("model") and path.endswith(".safetensors"):
            state.update(safetensors.torch.load(content))
    embedding = digest_of(state["model.embed_tokens.weight"])
    assert online.call("load_model", name)["embedding"] == embedding


@pytest.mark.parametrize(
    ("name", "token", "status"),
    [
        (LLAMA, {}, 401),
        (LLAMA, GUEST, 403),
        ("someone/nothing", {}, 401),  # the hub does not tell strangers what is missing
        ("someone/nothing", MEMBER, 404),
        (TINY, {"HF_TOKEN": "hf_expired"}, 401),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(name, token, status, online):
    ran = online.run("--model", name, *QUICK, "--out", "refused", **token)
    error = one_sentence(ran)
    assert f"cannot load the model {name} (the hub answers {status}: check the name" in error
    assert status == 404 or "hf auth login" in error
    assert not list((online.machine.folder / "refused").iterdir())


def test_a_hub_that_is_down_is_one_sentence_or_leaves_the_cache(online, hub):
    names = []
    for status in DOWN:
        names.append(f"someone/down-{status}")
        copy_of_tiny(hub, names[-1])
        hub.fault(f"api/models/{names[-1]}$", status=status, headers=RATE_LIMIT)
    nothing = online.call("find_models", names)
    for name, status in zip(names, DOWN):
        problem = f"cannot load the model {name} (the hub cannot be reached, it answers {status}: "
        assert nothing[name]["error"].startswith(problem)
    assert len(hub.requests) == len(names)  # nobody asks again and again
    faults = list(hub.faults)
    hub.faults.clear()
    there = online.call("find_models", names)
    assert all("fingerprint" in model for model in there.values())
    hub.faults += faults
    assert online.call("find_models", names) == there
    with stopped(hub):
        assert online.call("find_models", names) == there


def test_a_hub_that_does_not_answer_is_given_up(online, hub):
    """Of the model the answer does not end, of the data set it does not begin: at the same time,
    both are given up in about 4 seconds.
    """
    hub.fault("/api/models", drip=1)
    hub.fault("/api/datasets", seconds=60)
    both = online.timed("find_model_and_rows", TINY, "sst2")
    model, rows = both.value
    assert "the hub cannot be reached" in model["error"]
    assert rows.startswith("stand-in movies, ")
    assert 3 < both.seconds < SOON


# ---- downloads that break off --------------------------------------------------------------------


def test_a_cut_download_goes_on_where_it_was(online, hub):
    """The library writes 10 MiB at a time, so the file is longer than that."""
    repository = copy_of_tiny(hub, "someone/long")
    files = repository.branches["main"]
    state = safetensors.torch.load(files["model.safetensors"])
    long = safetensors.torch.save(state, {"format": "pt", "comment": "long " * 2_200_000})
    files["model.safetensors"] = long
    hub.fault(weights_link(repository), times=1, cut=10_600_000)
    whole = online.call("load_model", TINY)
    assert online.call("load_model", "someone/long", **HASTE)["logits"] == whole["logits"]
    ranges = [request.range for request in hub.asked(weights_link(repository))]
    assert ranges == [None, "bytes=10485760-"]


def test_a_download_that_breaks_off_starts_over_and_nothing_half_is_used(online, offline, hub):
    repository = copy_of_tiny(hub, "someone/broken")
    hub.fault(weights_link(repository), cut=20_000, reset=True)
    broken = online.call("load_model", "someone/broken", **HASTE)
    assert "the download broke off: run the same command again" in broken["error"]
    assert not list(online.cache_of("someone/broken").glob("**/*.safetensors"))
    assert not list(online.cache_of("someone/broken").glob("**/*.incomplete"))
    assert "cannot load the model" in offline.call("load_model", "someone/broken")["error"]
    hub.faults.clear()
    again = online.call("load_model", "someone/broken")
    assert again["fingerprint"] == f"commit:{repository.commit('main')}"
    assert offline.call("load_model", "someone/broken") == again


def test_a_model_without_one_of_its_files_is_not_used_offline(online, offline):
    online.call("load_model", QWEN)
    [part] = online.cache_of(QWEN).glob("snapshots/*/model-00002-of-00003.safetensors")
    part.unlink()
    assert "cannot load the model" in offline.call("load_model", QWEN)["error"]


def test_a_new_commit_is_fetched_and_named(online, offline, hub):
    repository = copy_of_tiny(hub, "someone/moving")
    old = online.call("load_model", "someone/moving")
    weights = hub_repos.mistral(seed=1)["model.safetensors"]
    repository.branches["main"]["model.safetensors"] = weights
    hub.fault(weights_link(repository), cut=20_000, reset=True)
    assert (
        online.call("load_model", "someone/moving", **HASTE) == old
    )  # the new one cannot be had whole
    assert offline.call("load_model", "someone/moving") == old
    hub.faults.clear()
    new = online.call("load_model", "someone/moving")
    assert new["fingerprint"] == f"commit:{repository.commit('main')}" != old["fingerprint"]
    assert new["embedding"] != old["embedding"]
    assert offline.call("load_model", "someone/moving") == new


def test_weights_in_other_formats_only_are_refused(online, hub):
    repository = copy_of_tiny(hub, "someone/pickled")
    del repository.branches["main"]["model.safetensors"]
    error = online.call("load_model", "someone/pickled")["error"]
    assert "does not have its weights whole as safetensors" in error


def test_the_file_of_a_bundled_model_comes_from_the_hub_and_is_checked(online, hub, tmp_path):
    content = b"GGUF and the rest"
    name = "someone/small-GGUF"
    hub.repositories["models", name] = Repository(name, {"main": {"small.gguf": content}})
    for sha256 in (sha256_of(content), "0" * 64):
        arguments = (name, "small.gguf", sha256, str(tmp_path))
        fetched = online.call("fetch_bundle", *arguments)
        if sha256 == sha256_of(content):
            assert (tmp_path / "small.gguf").read_bytes() == content
            (tmp_path / "small.gguf").unlink()
        else:
            assert "the sha256 of small.gguf" in fetched["error"]
            assert not (tmp_path / "small.gguf").exists()


# ---- data sets -----------------------------------------------------------------------------------


def test_every_benchmark_is_read_and_again_offline(online, offline, hub, tmp_path):
    read = online.call("read_tasks", BENCHMARKS)
    for name, task in read.items():
        assert "error" not in task, task
        repository, branch = where(name)
        commit = hub.commit(repository, "datasets", branch)
        assert task["source"] == f"hub:{repository}@{commit[:12]}"
        expected = items_of_a_folder(name, tmp_path / name)
        if tasks.TASKS[name].hub.train == tasks.TASKS[name].hub.test:  # cut in two
            assert by_text(task["train"] + task["test"]) == by_text(expected["train"])
            assert len(task["test"]) >= 2
        else:
            assert {part: task[part] for part in ("train", "test")} == expected
    hub.forget()
    assert offline.call("read_tasks", BENCHMARKS) == read
    assert not hub.requests


def items_of_a_folder(name: str, folder: Path) -> dict[str, list[dict]]:
    """What a benchmark's rows give by way of --data-dir."""
    local = folder / folder_of(name)
    local.mkdir(parents=True)
    hub = tasks.TASKS[name].hub
    for part, split in (("train", hub.train), ("test", hub.test)):
        rows = hub_repos.rows(folder_of(name), split)
        samples.write_lines(local / f"{part}.jsonl", rows)
    rows = tasks.read_task(tasks.TASKS[name], folder)
    items = {"train": rows.train, "test": rows.test}
    # as JSON has it, in which there are no tuples
    return json.loads(json.dumps({part: [asdict(item) for item in items[part]] for part in items}))


def by_text(items: list[dict]) -> list[dict]:
    return sorted(items, key=lambda item: item["text"])


def test_data_kept_elsewhere_is_found_without_the_hub(computers, online, hub):
    elsewhere = Watched(computers.elsewhere, hub, computers.cache)
    names = ["sst2", "finsen", "gsm8ks"]
    read = elsewhere.call("read_tasks", names)
    with stopped(hub):
        again = elsewhere.call("read_tasks", names)
        nothing = online.call("read_tasks", ["sst2"])
    assert all(task["source"].startswith("hub:") for task in read.values())
    assert again == read
    assert "it is not cached" in nothing["sst2"]["error"]


def test_where_the_hub_is_down_the_cache_counts_and_then_the_stand_in(online, hub):
    names = ["gsm8k", "arc", "finsen", "gsm8ks"]
    for name, status in zip(names, DOWN):
        hub.fault(f"api/datasets/{where(name)[0]}", status=status, headers=RATE_LIMIT)
    hub.fault("api/datasets/stanfordnlp/sst2", status=503)
    nothing = online.call("read_or_stand_in", [*names, "sst2"])
    for name in names:
        assert f"the hub cannot be reached for {name} and it is not cached" in nothing[name]
    assert nothing["sst2"].startswith("stand-in movies, ")
    assert len(hub.requests) == len(nothing)
    faults = list(hub.faults)
    hub.faults.clear()
    there = online.call("read_or_stand_in", [*names, "sst2"])
    assert all(source.startswith("hub:") for source in there.values())
    hub.faults += faults
    assert online.call("read_or_stand_in", [*names, "sst2"]) == there


def test_a_data_set_that_is_gated_is_one_sentence(online, hub):
    hub.fault("resolve/", status=403, headers={"X-Error-Code": "GatedRepo"})
    hub.fault("GET /api/datasets/openai", status=403)
    read = online.call("read_tasks", ["gsm8k"])
    assert "the hub refuses openai/gsm8k (403); accept its terms" in read["gsm8k"]["error"]
    read = online.call("read_tasks", ["sst2", "poems"])  # known, though its files are not given
    for task in read.values():
        assert "cannot load" in task["error"] and "--data-dir" in task["error"]
        assert "\n" not in task["error"]


def test_rows_of_an_older_commit_are_not_called_those_of_a_new_one(online, hub):
    """The data sets move on and are gated then: what is cached is older than what the hub tells."""
    names = ["sst2", "poems"]
    old = online.call("read_tasks", names)
    branches = []
    for name in names:
        repository, branch = where(name)
        branches.append(hub.repositories["datasets", repository].branches[branch])
    hub.fault("resolve/", status=403, headers={"X-Error-Code": "GatedRepo"})
    for files in branches:
        files["NEWS.md"] = b"there is more"
    try:
        now = online.call("read_tasks", names)
    finally:
        for files in branches:
            del files["NEWS.md"]
    for name in names:
        assert "error" in now[name] or now[name] == old[name]


def test_a_data_set_whose_download_is_cut_is_whole_in_the_end(online, offline, hub):
    whole = online.call("read_tasks", ["sst2", "poems"])
    shutil.rmtree(online.cache)
    hub.fault("GET /[0-9a-f]{64}", times=3, cut=500)
    assert online.call("read_tasks", ["sst2", "poems"], **HASTE) == whole
    shutil.rmtree(online.cache)
    hub.fault("GET /[0-9a-f]{64}", cut=500, reset=True)
    broken = online.call("read_tasks", ["sst2", "poems"], **HASTE)
    assert all("error" in task for task in broken.values())
    offline_too = offline.call("read_tasks", ["sst2", "poems"])
    assert all("it is not cached" in task["error"] for task in offline_too.values())
    hub.faults.clear()
    assert online.call("read_tasks", ["sst2", "poems"]) == whole
