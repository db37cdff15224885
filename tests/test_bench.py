"""pytest tests/test_bench.py: the plain way gives what the fast way gives, and the table is made; no time is asserted."""
import json
import sys

import pytest
import torch
from conftest import tiny

import bench
import data
import ia2
import lora
from tasks import TASKS


@pytest.fixture(scope="module")
def model():
    model = tiny("llama", vocabulary=49152, max_position_embeddings=2048)
    lora.add(model)
    return model


def test_plain_targets_are_the_same(model, tokenizer):
    problems = bench.word_problems(3)
    prompt = ia2.prompt_tokens(model, tokenizer, problems[:1], problems[2].query)
    with lora.disable(model):
        (response, activations), = bench.plain_targets(model, [prompt], 6)
    target, = ia2.collect_targets(model, tokenizer, problems[2:], [problems[:1]], 6)
    assert list(target.icl) == response
    torch.testing.assert_close(target.activations, activations, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["ia2", "sft"])
def test_plain_training_ends_at_the_same_dev_loss(name, model, tokenizer, movies):
    few_shot = data.few_shot_set(movies.pool, 4)
    train, dev = ia2.few_shot_targets(model, tokenizer, few_shot)
    lora.reset(model)
    plain = bench.plain_train(model, name, train, dev, 1e-3, 6)
    lora.reset(model)
    run = ia2.Run(0, train, dev, 1e-3)
    ia2.train(model, ia2.stage(name), [run], max_epochs=6)
    assert run.history[-1][2] == pytest.approx(plain, rel=1e-4)


def test_word_problems_are_right():
    task = TASKS["gsm8k"]
    for example in bench.word_problems(5):
        a, b, c, d = (int(word) for word in example.query.split() if word.isdigit())
        assert task.parse(example.response) == a * b // c + d and a * b % c == 0


def test_the_table_is_made_of_every_step(tmp_path, tokenizer, monkeypatch, capsys):
    tiny("qwen3", vocabulary=49152, max_position_embeddings=2048).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--model", str(tmp_path), "--device", "cpu", "--repeats", "1", "--epochs", "2",
                                      "--queries", "4", "--json"])
    bench.main()
    found = json.loads(capsys.readouterr().out)
    steps = [line["step"] for line in found["lines"]]
    assert steps == ["model load", "targets, 1 token", "targets, 48 tokens", "ia2 stage", "sft stage",
                     "ia2 stage, 15 runs together", "evaluation", "icl evaluation"]
    assert all(line["ratio"] > 0 and line["share"] > 0 for line in found["lines"][1:])
    assert list(found["flops_per_weight_byte"]) == ["1", "5", "15", "60"]
