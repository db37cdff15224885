"""pytest tests/lab/test_adapters.py: saved adapters are tested as they were trained, and merged."""

import json

import pytest
import torch
import transformers
from conftest import randomise, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import ia2
import lora
from engine import peft_files
from lab import adapters, anatomy, sweep

QUICK = ("--test", "6")


@pytest.fixture
def test_saved(call):
    """test_saved(*options) runs the command under test."""

    def run(*options):
        return call(*options, main=adapters.main, quick=QUICK)

    return run


def cells(result, method):
    """The numbers of a method's line in the table."""
    [line] = [line for line in result.out.splitlines() if line.startswith(f"| {method} ")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def save_adapter(folder, model, name=None):
    """A random adapter for a model, as PEFT would leave it: without the settings of a training."""
    lora.add(model)
    randomise(model)
    folder.mkdir()
    peft_files.save(model, folder)
    config = json.loads((folder / peft_files.CONFIG).read_text())
    config["base_model_name_or_path"] = name
    (folder / peft_files.CONFIG).write_text(json.dumps(config))


# ---- testing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", adapters.TRAINING)
def test_options_of_training_are_not_taken_where_nothing_is_trained(option, test_saved, tmp_path):
    result = test_saved(tmp_path, option, "1")
    assert result.code == 2 and "unrecognized arguments" in result.err and option in result.err


@pytest.mark.parametrize("wording", ["--labels words", "--labels remap --seed 3"])
def test_a_saved_adapter_is_tested_with_the_settings_of_its_training(
    wording, call, test_saved, tmp_path
):
    """The seed draws the words of remapped labels, too; seed and set draw the test queries."""
    options = (*wording.split(), "--set", 1, "--eval", "sst2", "poems", "--test", 3)
    rows = call(*options, main=ia2.main).rows
    [trained] = [
        row for row in rows if row["method"] == "ia2-sft" and row["eval_dataset"] == "poems"
    ]
    result = test_saved(tmp_path / "out" / trained["run"], "--eval", "poems", "--test", 3)
    assert result.code == 0, result.err
    assert f"{100 * trained['accuracy']:.1f}" in cells(result, "adapter")
    assert f"{trained['nll']:.3f}" in cells(result, "adapter")
    assert cells(result, "base") != cells(result, "adapter")


@pytest.mark.parametrize("at", ["output", "all"])
def test_an_adapter_that_was_trained_steered_is_tested_steered(at, call, test_saved, tmp_path):
    options = ("--methods", "steer-sft", "--lr", 1e-2, "--steer-at", at)
    trained = call(*options, main=sweep.main).rows[-1]
    folder = tmp_path / "out" / trained["run"]
    result = test_saved(folder)
    assert result.code == 0, result.err
    assert f"{trained['nll']:.3f}" in cells(result, "adapter")
    merged = test_saved(folder, "--merge", tmp_path / "merged")
    assert merged.code == 2 and "a steering vector in place" in merged.err
    (folder / "steering.safetensors").unlink()
    assert cells(test_saved(folder), "adapter") != cells(result, "adapter")


def test_an_adapter_that_was_tested_with_a_corrected_prior_is_so_again(call, test_saved, tmp_path):
    rows = call("--methods", "sft", "sft-prior", "--lr", 1e-2, main=sweep.main).rows
    plain, corrected = rows[-2:]
    assert (plain["method"], corrected["method"]) == ("sft", "sft-prior")
    assert f"{plain['nll']:.3f}" != f"{corrected['nll']:.3f}"
    result = test_saved(tmp_path / "out" / corrected["run"])
    assert f"{corrected['nll']:.3f}" in cells(result, "adapter")
    merged = test_saved(tmp_path / "out" / corrected["run"], "--merge", tmp_path / "merged")
    assert merged.code == 2 and "answers are corrected when they are read" in merged.err
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("task", ["gsm8k", "agnews"])
def test_an_adapter_is_not_tested_on_a_task_with_other_answers(task, call, test_saved, tmp_path):
    rows = call("--methods", "sft", "--labels", "words", main=ia2.main).rows
    result = test_saved(tmp_path / "out" / rows[-1]["run"], "--eval", task)
    assert result.code == 2 and f"cannot be tested on {task}: it was trained on" in result.err


def test_adapters_of_peft_are_tested_too(test_saved, tmp_path, tokenizer):
    save_adapter(tmp_path / "theirs", tiny(vocabulary=len(tokenizer)))
    result = test_saved(tmp_path / "theirs", "--eval", "sst2")
    assert result.code == 0, result.err
    assert cells(result, "base") != cells(result, "adapter")


def test_what_a_folder_does_not_tell_is_asked_for(test_saved, tmp_path, tokenizer):
    theirs = tmp_path / "theirs"
    save_adapter(theirs, tiny(vocabulary=len(tokenizer)))
    for words, message in (
        ((theirs,), "does not say its task; give one with --eval"),
        ((theirs, "--eval", "sst2", "--model", "auto"), "does not say which model it is for"),
        ((tmp_path,), "is not an adapter folder: adapter_config.json is missing"),
        ((theirs, "--eval", "sst2", "agnews"), "cannot be tested on agnews"),
    ):
        result = test_saved(*words)
        assert result.code == 2 and message in result.err and not result.out


def test_an_adapter_is_not_tested_on_other_weights(call, test_saved, tmp_path, tokenizer):
    [row] = [row for row in call("--methods", "sft", main=ia2.main).rows if row["method"] == "sft"]
    folder = tmp_path / "out" / row["run"]
    other = tmp_path / "other"
    tiny(vocabulary=len(tokenizer), hidden_size=64).save_pretrained(other)
    tokenizer.save_pretrained(other)
    result = test_saved(folder, "--model", other)
    assert result.code == 2 and "with other weights than those of" in result.err
    (folder / "training.json").unlink()
    result = test_saved(folder, "--model", other, "--eval", "sst2")
    assert result.code == 2 and "does not fit" in result.err


@pytest.mark.parametrize("content", ["[1]", "{", "null"])
def test_a_damaged_record_of_the_training_counts_as_none(content, test_saved, tmp_path, tokenizer):
    theirs = tmp_path / "theirs"
    save_adapter(theirs, tiny(vocabulary=len(tokenizer)))
    (theirs / "training.json").write_text(content)
    assert test_saved(theirs, "--eval", "sst2").code == 0
    (theirs / "adapter_config.json").write_text(content)
    result = test_saved(theirs, "--eval", "sst2")
    assert result.code == 2 and "cannot be read" in result.err


@pytest.mark.parametrize("family", ["GPTBigCode", "GPTNeoX", "Bloom"])
def test_a_model_without_self_attn_is_one_sentence(family, call, test_saved, tmp_path, tokenizer):
    """They call it attn, attention and self_attention. An adapter of the head alone would load."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), **sizes)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    save_adapter(tmp_path / "theirs", tiny(vocabulary=len(tokenizer)))
    for options in (("--eval", "sst2"), ("--merge", tmp_path / "merged")):
        result = test_saved(tmp_path / "theirs", "--model", tmp_path / "model", *options)
        errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
        assert result.code == 2 and len(errors) == 1 and "has no self_attn" in errors[0]
    result = call("--model", tmp_path / "model", main=anatomy.main, quick=QUICK)
    assert result.code == 2 and "has no self_attn" in result.err
    assert not (tmp_path / "merged").exists()


# ---- merging -------------------------------------------------------------------------------------


def logits_of(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits


@pytest.mark.parametrize("family", ["Qwen3", "Llama", "Gemma2"])
def test_a_merged_model_is_reloaded_by_plain_transformers_with_equal_logits(
    family, call, test_saved, tmp_path, tokenizer
):
    """Llama's here has tied embeddings."""
    home = tmp_path / "model"
    tiny(family, vocabulary=len(tokenizer)).save_pretrained(home)
    tokenizer.save_pretrained(home)
    options = ("--model", home, "--methods", "ia2-sft", "--lr", 1e-2)
    trained = call(*options, main=ia2.main).rows[-1]
    folder = tmp_path / "out" / trained["run"]
    result = test_saved(folder, "--model", home, "--merge", tmp_path / "merged")
    assert result.code == 0, result.err
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "merged")
    tokens = reloaded("Review: a fine film\nSentiment:").input_ids
    assert tokens == tokenizer("Review: a fine film\nSentiment:").input_ids
    adapted = AutoModelForCausalLM.from_pretrained(home)
    before = logits_of(adapted, tokens)
    peft_files.load(adapted, folder)
    expected = logits_of(adapted, tokens)
    torch.testing.assert_close(logits_of(merged, tokens), expected, rtol=1e-4, atol=1e-4)
    assert (expected - before).abs().max() > 1e-2
    assert not list(tmp_path.glob(".partial*"))


def test_a_merged_model_is_a_model_for_every_command(call, test_saved, tmp_path):
    trained = call("--methods", "sft", "--lr", 1e-2, main=ia2.main).rows[-1]
    folder = tmp_path / "out" / trained["run"]
    assert test_saved(folder, "--merge", tmp_path / "merged").code == 0
    options = ("--model", tmp_path / "merged", "--methods", "base")
    base = call(*options, main=ia2.main, out="again").rows[0]
    for field in ("accuracy", "nll", "label_mass"):
        assert base[field] == pytest.approx(trained[field], abs=1e-4)


def test_merging_never_writes_over_what_is_there(call, test_saved, tmp_path):
    folder = tmp_path / "out" / call("--methods", "sft", main=ia2.main).rows[-1]["run"]
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (kept, file):
        result = test_saved(folder, "--merge", out)
        assert result.code == 2 and "is there already; give a new folder" in result.err
    assert (kept / "mine.txt").read_text() == file.read_text() == "mine"


def test_a_merge_that_cannot_be_written_leaves_nothing(call, test_saved, tmp_path, monkeypatch):
    folder = tmp_path / "out" / call("--methods", "sft", main=ia2.main).rows[-1]["run"]

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
    result = test_saved(folder, "--merge", tmp_path / "merged")
    assert result.code == 2 and "cannot write to" in result.err and "No space left" in result.err
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".partial*"))
