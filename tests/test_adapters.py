"""pytest tests/test_adapters.py: saved adapters, their cards, testing them, and README's snippets as they stand."""
import re
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CPU, randomise, tiny
from peft import LoraConfig, get_peft_model

import data
import ia2
import lora
import model as base
import sweep

ROOT = Path(__file__).parent.parent


def adapter(folder, method):
    found, = (path for path in folder.glob(f"*-{method}-lr*"))
    return found


def figures(table):
    """The table that --adapter prints: {method: its cells}."""
    lines = [[cell.strip(" *") for cell in line.strip("|\n ").split("|")] for line in table.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines[2:]}


def test_a_card_says_what_the_adapter_is(call, tmp_path):
    rows = call("--eval", "sst2", "poems", "--sets", 2, "--lr", 1e-3)[3]
    for row in rows.values():
        if row["lr"]:
            _, head, text = (tmp_path / "out" / row["run"] / "README.md").read_text().split("---\n", 2)
            head = yaml.safe_load(head)
            assert head["library_name"] == "peft" and head["base_model"].endswith("tiny") and "license" not in head
            assert row["command"] in text and row["model_hash"] in text and f"few-shot set {row['set']}" in text
            assert text.count("- Stage") == len(ia2.METHODS[row["method"]])
            line = next(line for line in text.splitlines() if line.startswith(f"| {row['eval_dataset']}"))
            assert f" {100 * row['accuracy']:.1f} " in line and f" {row['ece']:.3f} " in line and f" {row['asim']:.3f} " in line


def test_a_lost_card_comes_back_with_its_figures(call, tmp_path):
    call("--methods", "sft")
    path = adapter(tmp_path / "out", "sft") / "README.md"
    text = path.read_text()
    path.write_text("stale")
    call("--methods", "sft")
    assert path.read_text() == text and "## Figures" in text


def test_a_saved_adapter_is_tested_without_training(call, tmp_path, capsys, place, monkeypatch):
    rows = call("--eval", "sst2", "poems")[3]
    monkeypatch.setattr(ia2, "train", None)
    folder = adapter(tmp_path / "out", "ia2-sft")
    monkeypatch.chdir(tmp_path)
    assert sweep.main(["--adapter", str(folder), "--eval", "sst2", "poems", "--data-dir", str(place / "bench"), "--test", "8"]) == 0
    found = figures(capsys.readouterr().out)
    for method, name in (("base", "base"), ("ia2-sft", folder.name)):
        expected = {row["eval_dataset"]: row for row in rows.values() if row["method"] == method}
        assert found[name] == [text for task in ("sst2", "poems") for text in
                               (f"{100 * expected[task]['accuracy']:.1f}", f"{expected[task]['ece']:.3f}")]
    assert sweep.main(["--adapter", str(folder), "--data-dir", str(place / "bench"), "--test", "8"]) == 0
    assert figures(capsys.readouterr().out)[folder.name] == found[folder.name][:2]


@pytest.mark.parametrize("task", ["sst2", "gsm8k"])
def test_an_adapter_that_peft_made_is_tested_too(task, place, tmp_path, capsys):
    torch.manual_seed(1)
    theirs = get_peft_model(base.load_model(str(place / "tiny"), CPU), LoraConfig(
        r=4, target_modules=["v_proj", "up_proj"], init_lora_weights=False))
    theirs.save_pretrained(tmp_path / "theirs")
    assert sweep.main(["--adapter", str(tmp_path / "theirs"), "--eval", task, "--data-dir", str(place / "bench"), "--test", "8",
                       "--max-tokens", "4"]) == 0
    assert set(figures(capsys.readouterr().out)) == {"base", "theirs"}


def test_an_adapter_of_other_weights_is_refused(call, place, tmp_path, tokenizer, capsys):
    call("--methods", "sft")
    other = tiny("qwen3", vocabulary=49152, initializer_range=0.2)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    assert sweep.main(["--adapter", str(adapter(tmp_path / "out", "sft")), "--model", str(tmp_path / "other"),
                       "--data-dir", str(place / "bench")]) == 2
    assert "was trained on" in capsys.readouterr().err


@torch.no_grad()
def test_the_snippets_of_the_readme_work(bundled, tokenizer, tmp_path, monkeypatch, capsys):
    """PEFT and the merged model give our logits (1e-4), and the answer's probabilities are those of an evaluation."""
    section = (ROOT / "README.md").read_text().split("## Use an adapter elsewhere")[1].split("\n## ")[0]
    snippets = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(snippets) == 3
    model = base.load_model("smollm2-135m", CPU)
    lora.add(model)
    randomise(model)
    (tmp_path / "my_adapter").mkdir()
    lora.save(model, tmp_path / "my_adapter", base_model="HuggingFaceTB/SmolLM2-135M-Instruct")
    monkeypatch.chdir(tmp_path)
    names = {}
    for snippet in snippets:
        exec(snippet, names)
    tokens = torch.tensor([base.encode(tokenizer, "Review: a warm and clever film\nSentiment:")])
    expected = model(tokens).logits
    torch.testing.assert_close(names["adapted"](tokens).logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(names["answerer"](tokens).logits, expected, atol=1e-4, rtol=1e-4)
    printed = torch.tensor([float(value) for value in re.findall(r"0\.\d+", capsys.readouterr().out)])
    exam = ia2.Exam(data.find_task("movies"), [data.Example("Review: a warm and clever film\nSentiment:", " positive", 1)],
                    base.label_tokens(tokenizer, [" negative", " positive"]), 1)
    (scores,) = ia2.evaluate(model, tokenizer, exam, [0])
    assert scores["reliability"][0][1] == pytest.approx(printed.max().item(), abs=1e-3)
