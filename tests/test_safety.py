"""pytest tests/test_safety.py: no pickle, no foreign code, everything pinned, no pin that is known to be vulnerable."""
import json
import re
from pathlib import Path

from packaging.version import Version

import model as base
from conftest import CPU, tiny

ROOT = Path(__file__).parent.parent

# Published advisories for what we pin, and the first version without them.
ADVISORIES = {
    "torch": ("2.10.0", "CVE-2026-24747"), "transformers": ("5.3.0", "CVE-2026-4372"), "pip": ("26.0", "CVE-2026-1703"),
    "filelock": ("3.20.3", "CVE-2026-22701"), "setuptools": ("78.1.1", "CVE-2025-47273"),
}


def pins():
    lines = [line for name in ("requirements.txt", "tests/requirements.txt") for line in (ROOT / name).read_text().splitlines()]
    return [line for line in lines if line.strip() and not line.startswith(("#", "-r"))]


def test_every_requirement_is_pinned_and_both_archives_have_a_hash():
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins())
    archives = [line for line in (ROOT / "bundled.txt").read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(archives) == 2 and all(re.fullmatch(r"[\w-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", line) for line in archives)


def test_no_pin_is_older_than_the_fix_of_a_known_advisory():
    versions = dict(line.split("==") for line in pins())
    for name, (fixed, advisory) in ADVISORIES.items():
        assert Version(versions[name]) >= Version(fixed), advisory


def test_nothing_unpickles_or_runs_foreign_code():
    for path in ROOT.glob("*.py"):
        text = path.read_text()
        assert not re.search(r"\bpickle\b|torch\.load\(|trust_remote_code|[^.]\beval\(|\bexec\(|os\.system|shell=True|extractall", text), path


def test_code_that_a_model_brings_along_is_not_run(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert base.load_model(str(tmp_path), CPU).config.model_type == "llama"  # transformers' own class
    assert not (tmp_path / "ran").exists()
