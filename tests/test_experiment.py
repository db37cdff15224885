"""pytest tests/test_experiment.py: the main job of ia2.py, what it prints, keeps and needs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import alone, randomise, tiny

import data
import ia2
import lora
from engine import peft_files

ROOT = Path(__file__).parent.parent


def test_the_main_job_prints_answers_and_table_and_keeps_rows_and_adapters(call, tmp_path):
    code, out, err, rows = call("--dataset", "sst2", "--eval", "sst2", "poems")
    assert code == 0, err
    found = [(row["method"], row["eval_dataset"]) for row in rows]
    methods = ("base", "icl", "sft", "ia2", "ia2-sft")
    assert found == [(method, task) for method in methods for task in ("sst2", "poems")]
    answers, table, values = out.split("\n\n")[0], out, out.split("\n\n")[-1]
    assert all(answers.count(f"  {method} ") == 3 for method in methods), (
        "three queries, each method"
    )
    assert "poems* accuracy %" in table and table.count("\n| ") == 7 and "Compare ia2-sft" in table
    assert re.search(r"^seconds: \d", values, re.M) and re.search(
        r"^peak_memory_gb: \d", values, re.M
    )
    assert re.search(r"^ia2_first_loss: \d", values, re.M)
    assert re.search(r"^ia2-sft_kept_steps: ia2 \d of 2, sft \d of 2$", values, re.M)
    for row in rows:
        assert row["command"].startswith("python ") and row["command"].endswith("--eval sst2 poems")
        assert (row["n"], row["set"]) == (4, 0)
        saved = tmp_path / "out" / row["run"]
        assert saved.exists() == (row.get("lr") is not None)
        if saved.exists():
            names = {path.name for path in saved.iterdir()}
            assert names == {"adapter_config.json", "adapter_model.safetensors", "training.json"}
            assert row["dev_gold_loss"] > 0 and 0 <= row["teacher_right"] <= 1
            assert row["forgets"] > 0 and row["stages"][0]["history"]
        assert len(row["train_labels"]) == 4 and len(row["dev_labels"]) == 2
        assert len(row["outcomes"]) == row["test"]
    joint = next(row for row in rows if row["method"] == "ia2-sft")
    sft = next(row for row in rows if row["method"] == "sft")
    assert [stage["name"] for stage in joint["stages"]] == ["ia2", "sft"]
    assert sft["dev_loss"] == pytest.approx(sft["dev_gold_loss"])


@pytest.mark.parametrize(
    "methods, labels, says",
    [
        (("base", "icl", "sft", "ia2-sft"), "words", "icl: accuracy, NLL, and how near"),
        (("base", "icl", "sft", "ia2-sft"), None, "icl: accuracy and how near"),
        (("base", "icl", "ia2-sft"), "words", None),
        (("base", "icl"), None, None),
    ],
)
def test_only_what_is_in_the_table_is_to_be_compared(methods, labels, says):
    text = ia2.what_to_compare([{"method": method, "labels": labels} for method in methods])
    assert says in text if says else text == ""


def without_times(rows):
    drop = ("stages", "seconds", "command", "peak_memory_gb")
    return [{key: value for key, value in row.items() if key not in drop} for row in rows]


def test_the_same_command_gives_the_same_digits(call):
    first = without_times(call(out="one")[3])
    assert first == without_times(call(out="two")[3]) and len(first) == 5


def test_a_few_shot_set_has_test_queries_of_its_own(call):
    first = call("--set", 0, "--methods", "base")[3]
    second = call("--set", 1, "--methods", "base")[3]
    assert first[0]["test_data"] != second[-1]["test_data"]


def test_a_saved_adapter_gives_the_rows_figures_and_one_method_is_the_same_alone(
    call, place, tmp_path, tokenizer
):
    rows = call()[3]
    others = call("--methods", "ia2-sft", out="alone")[3]
    row = next(row for row in rows if row["method"] == "ia2-sft")
    by_itself = next(row for row in others if row["method"] == "ia2-sft")
    assert (by_itself["accuracy"], by_itself["dev_loss"]) == (row["accuracy"], row["dev_loss"])
    model = tiny(vocabulary=49152)
    peft_files.load(model, tmp_path / "out" / row["run"])
    task = data.load("sst2", tokenizer, data.Options(data_dir=str(place / "bench")))
    evaluation = ia2.evaluate(model, tokenizer, data.draw_test(task, 6))
    assert evaluation.scores["nll"] == pytest.approx(row["nll"], abs=1e-5)


def test_what_tuning_changes_elsewhere_is_the_mean_kl_to_the_base_model(bundled, tokenizer, movies):
    prompts = data.unrelated_prompts(tokenizer, leave_out=[movies], count=6)
    assert len(prompts) == 6 and prompts == sorted(prompts, key=len)
    base = ia2.next_logprobs(bundled, prompts)
    settings = {"rank": 8, "settings": {}, "unrelated": prompts, "unrelated_logprobs": base}
    setup = ia2.Setup(bundled, tokenizer, movies, [movies], **settings)
    assert ia2.forgetting(setup) == pytest.approx(0, abs=1e-6)
    randomise(bundled)
    total = 0.0
    with torch.no_grad():
        for prompt in prompts:
            now = alone(bundled, prompt, 1)[1][0].double().softmax(-1)
            with lora.disable(bundled):
                before = alone(bundled, prompt, 1)[1][0].double().softmax(-1)
            total += (before * (before.log() - now.log())).sum().item()
    assert ia2.forgetting(setup) == pytest.approx(total / 6, rel=1e-3)


PEAK = """
import sys
sys.path.insert(0, {root!r})
import data, ia2
data.unrelated_prompts.__defaults__ = (4,)  # of 200: they cost time, and 39 MB in all
ia2.main()
status = open("/proc/self/status").read()
print(status.split("VmHWM:")[1].split()[0])  # since exec, unlike ru_maxrss
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak there")
def test_the_memory_of_the_main_job_is_bounded(tmp_path):
    """At most 2.5 times the weights. Logits at all positions of 16 queries would be above it."""
    words = ["--dataset", "movies", "--n", "2", "--epochs", "1", "--methods", "ia2", "--test", "16"]

    def peak(out):
        command = [sys.executable, "-c", PEAK.format(root=f"{ROOT}/"), *words]
        command += ["--out", tmp_path / out]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(result.stdout.splitlines()[-1]) * 1024

    bound = 2.5 * 4 * 134_515_008
    # Huge pages make a process larger now and then.
    assert peak("once") < bound or peak("again") < bound


def test_what_a_command_printed_can_be_read_by_a_script(call):
    out = call()[1]
    lines = dict(line.split(": ", 1) for line in out.strip().split("\n\n")[-1].splitlines())
    assert float(lines["seconds"]) > 0 and json.loads(lines["ia2_first_loss"]) > 0
