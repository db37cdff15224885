"""pytest tests/test_claims.py: verdicts follow the intervals, and what reproduce.py adds."""
import json

import pytest
import torch
from safetensors.torch import save_file
from samples import row

import claims
import lora
import model as base
import options
import reproduce
import results


def rows(shift, noise=0.01, figure="accuracy", **more):
    """sft and ia2-sft on six sets; ia2-sft is better by `shift`, with a deviation of `noise`."""
    found = []
    for place in range(6):
        for method in ("sft", "ia2-sft"):
            value = 0.5 + (shift + noise * (-1) ** place if method == "ia2-sft" else 0)
            found.append(row(method=method, set=place, **{"accuracy": 0.5, "ece": 0.2, "asim": 0.5, figure: value}, **more))
    return found


@pytest.mark.parametrize("shift, noise, expected", [(0.1, 0.01, "holds"), (-0.1, 0.01, "does not hold"), (0.01, 0.1, "undecided")])
def test_a_verdict_is_where_the_interval_lies(shift, noise, expected):
    text, found = claims.verdict(rows(shift, noise), "accuracy", "ia2-sft", "sft", +1)
    assert found == expected and f"{100 * shift:+.1f} points" in text and "6 pairs" in text
    opposite = {"holds": "does not hold", "does not hold": "holds", "undecided": "undecided"}
    assert claims.verdict(rows(shift, noise), "accuracy", "ia2-sft", "sft", -1)[1] == opposite[expected]


def test_calibration_needs_a_correlation_below_zero():
    points = [row(asim=0.1 * k, ece=0.9 - 0.1 * k, set=k) for k in range(8)]
    assert claims.calibration(points)[1] == "holds"
    assert claims.calibration([{**p, "ece": 1 - p["ece"]} for p in points])[1] == "does not hold"
    assert claims.calibration([{**p, "ece": (0.1, 0.2)[k % 2]} for k, p in enumerate(points)])[1] == "undecided"


def test_subspaces_are_judged_against_chance():
    def some(first, second, share):
        return row(method=second, overlap={first: {"q": [share, share]}}, overlap_chance={"q": 0.02})
    near = [some("sft", "ia2", 0.03), some("sft", "ia2-sft", 0.04), some("ia2", "ia2-sft", 0.6)]
    assert [found[1] for found in claims.subspaces(near)] == ["holds", "holds"]
    far = [some("sft", "ia2", 0.03), some("sft", "ia2-sft", 0.3), some("ia2", "ia2-sft", 0.1)]
    assert [found[1] for found in claims.subspaces(far)] == ["does not hold", "does not hold"]
    assert "60%" in claims.subspaces(near)[0][0] and claims.subspaces(near[:1]) == (None, None)


def test_the_teachers_part_is_told_apart():
    """ICL beats base on three sets of six; there ia2-sft is 10 points above sft, elsewhere 10 below; IA2 is as good as ICL."""
    found = []
    for place in range(6):
        good = place < 3
        for method, value in (("base", 0.5), ("icl", 0.6 + 0.01 * place if good else 0.4 - 0.01 * place), ("sft", 0.5),
                              ("ia2", 0.6 + 0.01 * place if good else 0.4 - 0.01 * place), ("ia2-sft", 0.6 if good else 0.4)):
            found.append(row(method=method, set=place, accuracy=value, ece=0.1))
    text = claims.teacher(found)
    assert "teacher and copy, is +1.00" in text
    head, _, accuracy = text.splitlines()[2:5]
    assert head.split(" | ")[1].startswith("where ICL is more accurate than the base model")
    assert [cell.split(" points")[0] for cell in accuracy.split(" | ")[1:]] == ["ia2-sft minus sft: +10.0", "ia2-sft minus sft: -10.0"]


def test_claims_are_listed_in_and_out_of_domain():
    both = rows(0.1) + [{**found, "eval_dataset": "o"} for found in rows(-0.1)]
    found = [(claim, outcome) for claim, _, outcome in claims.check(both)]
    assert ("IA2 then SFT is more accurate than SFT", "holds") in found and ("the same, out of domain", "does not hold") in found
    assert claims.table(both).startswith("### The paper's claims") and claims.table(rows(0.1)[:2]) == ""


def test_the_parts_of_the_reproduction_are_commands():
    assert set(reproduce.PARTS) == {*reproduce.SWEEPS, *reproduce.ANALYSES}
    for what, folder, words in reproduce.SWEEPS.values():
        assert what and options.parse([*words.split(), "--out", folder]).out == folder


def test_updates_of_the_same_set_are_told_from_those_of_others(tmp_path):
    """Updates whose spans are known: columns of the unit matrix. sft and ia2 share one of two within a set, none across sets."""
    columns = {("sft", 0): (0, 1), ("ia2", 0): (1, 2), ("sft", 1): (4, 5), ("ia2", 1): (5, 6)}
    found = []
    for (method, number), span in columns.items():
        for lr in (0.1, 0.2):  # at the other rate the spans are moved: pairs of two rates would share other columns
            B = torch.eye(20)[:, [place + (10 if lr == 0.2 else 0) for place in span]]
            found.append(row(method=method, set=number, lr=lr, run=f"{method}{number}{lr}"))
            folder = tmp_path / found[-1]["run"]
            folder.mkdir()
            (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
            save_file({f"{lora.PREFIX}q_proj.lora_{kind}.weight": weight.contiguous()
                       for kind, weight in (("A", torch.ones(2, 3)), ("B", B))}, folder / "adapter_model.safetensors")
    results.append(tmp_path / "results.jsonl", found)
    reproduce.compare_updates(tmp_path / "overlap.jsonl", tmp_path)
    lines = {tuple(row["methods"]): row for row in reproduce.read(tmp_path / "overlap.jsonl")}
    assert lines["sft", "ia2"]["same_set"] == pytest.approx(0.5) and lines["sft", "ia2"]["other_set"] == pytest.approx(0)
    assert lines["sft", "sft"]["same_set"] is None and lines["sft", "ia2"]["chance"] == 0.1
    assert "| sft and ia2 | 50.0%        | 0.0%           | 10.0%  |" in reproduce.update_table(tmp_path / "overlap.jsonl")
    with pytest.raises(base.UserError, match="run the part n4 first"):
        reproduce.compare_updates(tmp_path / "overlap.jsonl", tmp_path / "nothing")
