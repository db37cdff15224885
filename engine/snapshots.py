"""Models of the hub: one commit of a repository, whole in the hub's own cache.

Configuration, tokenizer and weights are read from the folder of one commit, so the commit tells
which weights were used. Only safetensors are fetched, and only the files that transformers reads.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, scan_cache_dir, snapshot_download
from huggingface_hub.errors import CacheNotFound, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import logging
from tqdm import tqdm

from support.cli import UserError, log
from support.hub import ANSWER_SECONDS, DISK_ERRORS, http_status, within_seconds

logging.set_verbosity_error()  # each retry of each file would be a warning

# A repository may hold its weights several times: in other formats, in folders of their own, in
# other precisions, as its authors trained them. These are the files that transformers reads.
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
UNWANTED = ["*/*", "model.*.safetensors", "consolidated*", "adapter_*"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


class Bar(tqdm):
    """A progress bar that appears on a terminal only, and only for what takes a while."""

    def __init__(self, *args, **options):
        super().__init__(*args, **{**options, "disable": None, "delay": 1})


@dataclass(frozen=True)
class Snapshot:
    """The files of a repository at one commit."""

    folder: Path
    commit: str


UNREACHABLE = "the hub cannot be reached"


class OutOfReach(UserError):
    """The hub does not answer, or not as a hub does."""


def find_snapshot(repository: str) -> Snapshot:
    """The newest commit of a hub model, fetched where files are missing, or what is in the cache.

    The cached commit serves where the hub cannot be reached or refuses. Raises UserError where
    there is none: OutOfReach within 5 seconds if the hub does not answer.
    """
    answered = False
    try:
        commit = newest_commit(repository)
        answered = True
        if not is_whole(repository, commit):
            log(f"downloading {repository} (once) ...")
        folder = Path(snapshot_download(repository, **selection(), tqdm_class=Bar))
    except Exception as error:  # httpx, huggingface_hub and json have classes of their own
        problem = describe(error, answered)
        snapshot = cached_snapshot(repository)
        if snapshot is None:
            error_class = OutOfReach if problem.what.startswith(UNREACHABLE) else UserError
            raise error_class(
                f"cannot load the model {repository} ({problem.what}: {problem.advice}); "
                "smollm2-135m needs no hub"
            ) from None
        short = snapshot.commit[:12]
        log(f"warning: {problem.what}; using the cached {repository}, commit {short}")
        return snapshot
    return Snapshot(folder, folder.name)


def selection() -> dict[str, list[str]]:
    """Which files of a repository are wanted, as options of huggingface_hub."""
    return {"allow_patterns": WANTED, "ignore_patterns": UNWANTED}


def newest_commit(repository: str) -> str:
    """Ask the hub for the newest commit. Raises what the request raises, or TimeoutError."""

    def ask():
        return HfApi().model_info(repository, timeout=ANSWER_SECONDS).sha

    return within_seconds(ask)


@dataclass(frozen=True)
class Problem:
    """What went wrong between here and the hub, and what to do, as parts of a sentence."""

    what: str
    advice: str


def describe(error: Exception, answered: bool) -> Problem:
    """An error of the hub or of the way to it; `answered` if it came after a first answer."""
    status = http_status(error)
    if status in (401, 403):
        return Problem(
            f"the hub answers {status}",
            "check the name; if it is gated, accept its licence on its page of the hub and run "
            "`hf auth login`",
        )
    if status == 404:
        return Problem("the hub answers 404", "check the name")
    if status is not None:
        advice = "try again later, or give a local folder"
        return Problem(f"{UNREACHABLE}, it answers {status}", advice)
    if isinstance(error, HFValidationError):
        return Problem("no repository of the hub can have that name", "check it")
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        what = f"the hub's cache cannot be written ({error.strerror})"
        return Problem(what, "make room or set HF_HOME to another folder")
    if answered:
        advice = "run the same command again, finished files are kept"
        return Problem("the download broke off", advice)
    return Problem(UNREACHABLE, "check the network, or give a local folder")


# ---- the cache -----------------------------------------------------------------------------------


def cached_snapshot(repository: str) -> Snapshot | None:
    """A whole snapshot in the cache: the main branch's, or else the one that was fetched last."""
    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, ValueError):
        return None
    revisions = []
    for cached in repositories:
        if cached.repo_type == "model" and cached.repo_id == repository:
            revisions += cached.revisions
    revisions.sort(key=lambda revision: ("main" in revision.refs, revision.last_modified))
    for revision in reversed(revisions):
        if is_whole(repository, revision.commit_hash):
            return Snapshot(revision.snapshot_path, revision.commit_hash)
    return None


def is_whole(repository: str, commit: str) -> bool:
    """Whether all wanted files of a commit are in the cache, as far as the cache can tell."""
    try:
        folder = snapshot_download(
            repository, revision=commit, local_files_only=True, **selection()
        )
    except LocalEntryNotFoundError:
        return False
    # The list of files is unknown if another program filled the cache.
    has_tokenizer = any(Path(folder, name).exists() for name in TOKENIZER_FILES)
    return has_tokenizer and Path(folder, "config.json").exists() and has_weights(Path(folder))


def has_weights(folder: Path) -> bool:
    """Whether a model's folder has its weights as safetensors, in one file or all of its parts."""
    if (folder / "model.safetensors").exists():
        return True
    index = folder / "model.safetensors.index.json"
    try:
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or a broken one
        return False
    return all((folder / part).exists() for part in parts)
