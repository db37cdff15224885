"""pytest tests/test_lora.py: the adapter's algebra, against PEFT and against written-out sums; what is refused, and why."""
import json

import pytest
import torch
from conftest import random_prompts, randomise, tiny
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import lora

TOKENS = torch.tensor([random_prompts([14])[0]])


@torch.no_grad()
def logits(model):
    return model(TOKENS, use_cache=False).logits


def test_a_new_adapter_changes_nothing_and_a_trained_one_does(tiny_model):
    before = logits(tiny_model)
    lora.add(tiny_model)
    assert torch.equal(logits(tiny_model), before)
    randomise(tiny_model)
    assert not torch.allclose(logits(tiny_model), before, atol=1e-3)
    with lora.disable(tiny_model):
        assert torch.equal(logits(tiny_model), before)
    lora.reset(tiny_model)
    assert torch.equal(logits(tiny_model), before)


def test_a_layer_is_w_x_plus_scaled_b_a_x(tiny_model):
    lora.add(tiny_model, rank=4, alpha=10)
    randomise(tiny_model)
    layer = next(iter(lora.layers(tiny_model).values()))
    x = torch.randn(3, 5, 32)
    with torch.no_grad():
        expected = x @ layer.linear.weight.T + 10 / 4 * x @ layer.A.T @ layer.B.T
        torch.testing.assert_close(layer(x), expected)


def test_disable_ends_also_after_an_error(tiny_model):
    lora.add(tiny_model)
    randomise(tiny_model)
    on = logits(tiny_model)
    with pytest.raises(RuntimeError):
        with lora.disable(tiny_model), lora.disable(tiny_model):
            raise RuntimeError
    assert torch.equal(logits(tiny_model), on)


def test_reset_draws_a_as_a_linear_layer_does_and_by_seed(tiny_model):
    lora.add(tiny_model, seed=3)
    first = lora.get_state(tiny_model)
    lora.reset(tiny_model, seed=4)
    other = lora.get_state(tiny_model)
    lora.reset(tiny_model, seed=3)
    again = lora.get_state(tiny_model)
    for name, weight in first.items():
        assert torch.equal(weight, again[name])
        if "lora_A" in name:
            bound = weight.shape[1] ** -0.5
            assert not torch.equal(weight, other[name]) and 0.9 * bound < weight.abs().max() <= bound
        else:
            assert not weight.any()


def test_only_a_and_b_of_q_k_and_o_are_trained(tiny_model):
    lora.add(tiny_model)
    tiny_model(TOKENS).logits.sum().backward()
    names = {name for name, weight in tiny_model.named_parameters() if weight.requires_grad}
    assert len(names) == 3 * 2 * tiny_model.config.num_hidden_layers == len(lora.weights(tiny_model))
    assert all(name.split(".")[-2] in ("q_proj", "k_proj", "o_proj") and name.split(".")[-1] in "AB" for name in names)
    assert all((weight.grad is not None) == weight.requires_grad for weight in tiny_model.parameters())


def test_merging_keeps_the_logits_and_takes_the_adapter_off(tiny_model):
    lora.add(tiny_model, alpha=16)
    randomise(tiny_model)
    before = logits(tiny_model)
    merged = lora.merge(tiny_model)
    assert not lora.layers(merged) and not any("linear" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits(tiny_model), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
def test_a_merged_bfloat16_model_is_within_its_rounding(family):
    """Merged or not, the distance from the float32 model is that of bfloat16: neither is more than twice the other."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny(family, dtype)
        lora.add(model)
        randomise(model)
        found.append(logits(model).float())
    exact, adapter = found
    merged = logits(lora.merge(model)).float()
    apart = (adapter - exact).abs().max()
    assert 0 < (merged - exact).abs().max() < 2 * apart and (merged - adapter).abs().max() < 2 * apart


def test_merging_what_has_diverged_is_refused_and_changes_nothing(tiny_model):
    lora.add(tiny_model)
    before = logits(tiny_model)
    with torch.no_grad():
        list(lora.layers(tiny_model).values())[-1].B.fill_(float("inf"))
    with pytest.raises(lora.LoRAError, match="not finite: it has diverged; train it again"):
        lora.merge(tiny_model)
    lora.reset(tiny_model)
    assert torch.equal(logits(tiny_model), before)


# ---- files of ours and of PEFT's --------------------------------------------------------------------------------------


def peft_folder(path, model=None, **options):
    """Save an adapter by PEFT; the model that it made."""
    torch.manual_seed(1)
    config = {"target_modules": ["q_proj", "k_proj", "o_proj"], "init_lora_weights": False, **options}
    theirs = get_peft_model(model or tiny("Qwen3"), LoraConfig(**config))
    theirs.eval().save_pretrained(path)
    return theirs


@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
def test_peft_loads_what_is_saved_here(family, tmp_path):
    model = tiny(family)
    lora.add(model, rank=4, alpha=12)
    randomise(model)
    lora.save(model, tmp_path)
    theirs = PeftModel.from_pretrained(tiny(family), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [
    dict(r=8, lora_alpha=8), dict(r=4, lora_alpha=10, use_rslora=True), dict(r=2, target_modules=["q_proj", "v_proj", "up_proj"]),
    dict(r=2, target_modules=r".*layers\.[01]\..*(q_proj|down_proj)"), dict(r=2, init_lora_weights="gaussian"),
    dict(r=2, lora_dropout=0.1), dict(r=3, target_modules=["q_proj", "lm_head"])])
def test_what_peft_saves_loads_here(options, tmp_path):
    theirs = peft_folder(tmp_path, **options)
    model = tiny("Qwen3")
    lora.load(model, tmp_path)
    torch.testing.assert_close(logits(model), logits(theirs), atol=1e-4, rtol=1e-4)


def test_a_float32_adapter_on_a_bfloat16_model_is_as_near_to_float32_as_pefts(tmp_path):
    exact = tiny("Llama")
    lora.add(exact)
    randomise(exact)
    lora.save(exact, tmp_path)
    ours = tiny("Llama", torch.bfloat16)
    lora.load(ours, tmp_path)
    theirs = PeftModel.from_pretrained(tiny("Llama", torch.bfloat16), tmp_path)
    assert all(weight.dtype == torch.float32 for weight in lora.weights(ours).values())
    errors = [(logits(model).float() - logits(exact)).abs().mean().item() for model in (ours, theirs)]
    assert 0 < errors[0] < 1.5 * errors[1]


def test_saving_and_loading_is_exact(tiny_model, tmp_path, request):
    lora.add(tiny_model, rank=3, alpha=7)
    randomise(tiny_model)
    lora.save(tiny_model, tmp_path)
    other = tiny(request.node.callspec.params["tiny_model"])
    lora.load(other, tmp_path)
    assert {layer.scale for layer in lora.layers(other).values()} == {7 / 3}
    state = lora.get_state(tiny_model)
    assert all(torch.equal(weight, state[name]) for name, weight in lora.get_state(other).items())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ["k_proj", "o_proj", "q_proj"]


@pytest.mark.parametrize("drop", [["r"], ["lora_alpha"], ["r", "lora_alpha"]])
def test_a_missing_r_or_alpha_is_pefts_default_of_8(drop, tmp_path):
    theirs = peft_folder(tmp_path, r=8, lora_alpha=8)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in drop}))
    model = tiny("Qwen3")
    lora.load(model, tmp_path)
    torch.testing.assert_close(logits(model), logits(theirs), atol=1e-4, rtol=1e-4)


def test_keys_with_default_in_them_load(tmp_path):
    theirs = peft_folder(tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    save_file({key.replace(".weight", ".default.weight"): w for key, w in state.items()}, tmp_path / "adapter_model.safetensors")
    model = tiny("Qwen3")
    lora.load(model, tmp_path)
    torch.testing.assert_close(logits(model), logits(theirs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("change, reason", [
    ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"), ({"init_lora_weights": "olora"}, "init_lora_weights=olora"),
    ({"init_lora_weights": "corda"}, "init_lora_weights=corda"), ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
    ({"init_lora_weights": "loftq"}, "loftq"), ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens="),
    ({"bias": "all"}, "bias=all"), ({"bias": "lora_only"}, "bias=lora_only"), ({"lora_bias": True}, "lora_bias=True"),
    ({"use_dora": True}, "use_dora=True"), ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
    ({"rank_pattern": {"q_proj": 2}}, "rank_pattern="), ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern="),
    ({"layer_replication": [[0, 2]]}, "layer_replication="), ({"peft_type": "IA3"}, "peft_type=IA3")])
def test_what_is_more_than_plain_lora_is_refused_with_the_reason(change, reason, tmp_path):
    peft_folder(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(lora.LoRAError, match=f"more than LoRA .*{reason}.*merge it with PEFT"):
        lora.load(tiny("Qwen3"), tmp_path)


@pytest.mark.parametrize("name, change, reason", [
    ("no weights at all", lambda state: {}, "missing or not finite, instead of"),
    ("other weights only", lambda state: {"x.weight": torch.ones(2)}, "is missing"),
    ("one layer less", lambda state: {k: w for k, w in state.items() if "layers.1.self_attn.k_proj" not in k},
     "layers.1.self_attn.k_proj.lora_A.weight is missing"),
    ("one weight more", lambda state: {**state, "base_model.model.lm_head.weight": torch.ones(2, 2)}, "lm_head.weight is"),
    ("a bias", lambda state: {**state, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias": torch.ones(2)}, "lora_B.bias"),
    ("size 0, as ZeRO-3 leaves them", lambda state: {k: torch.empty(0) for k in state}, r"\(0,\) .*ZeRO-3"),
    ("nan", lambda state: {k: w * float("nan") for k, w in state.items()}, "not finite"),
    ("one infinity", lambda state: {k: w + (float("inf") if "layers.2" in k else 0) for k, w in state.items()}, "not finite"),
    ("another rank", lambda state: {k: w[:4] if "lora_A" in k else w[:, :4] for k, w in state.items()}, r"\(4, 32\)"),
])
def test_a_file_that_is_not_whole_is_refused(name, change, reason, tmp_path):
    peft_folder(tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    save_file({k: w.contiguous() for k, w in change(state).items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(lora.LoRAError, match=f"does not fit: .*{reason}"):
        lora.load(tiny("Qwen3"), tmp_path)


@pytest.mark.parametrize("content", ["[1, 2]", "3", '"x"', "{broken", "", '{"r": 8}'])
def test_a_config_that_is_no_json_object_of_loras_is_refused(content, tmp_path):
    peft_folder(tmp_path)
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(lora.LoRAError, match="cannot be read .*give adapter_config.json, an object"):
        lora.load(tiny("Qwen3"), tmp_path)


def test_folders_that_hold_no_adapter_or_only_a_bin_are_refused(tmp_path):
    with pytest.raises(lora.LoRAError, match="cannot be read"):
        lora.load(tiny("Qwen3"), tmp_path)
    peft_folder(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(lora.LoRAError, match=r"adapter_model.safetensors .*PEFT can save a .bin as such"):
        lora.load(tiny("Qwen3"), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(lora.LoRAError, match="cannot be read"):
        lora.load(tiny("Qwen3"), tmp_path)


def test_another_model_or_a_second_adapter_is_refused(tmp_path):
    peft_folder(tmp_path)
    with pytest.raises(lora.LoRAError, match="does not fit: .*use its own model"):
        lora.load(tiny("Qwen3", hidden_size=64), tmp_path)
    model = tiny("Qwen3")
    lora.load(model, tmp_path)
    for again in (lambda: lora.load(model, tmp_path), lambda: lora.add(model)):
        with pytest.raises(lora.LoRAError, match="has an adapter already; load it again"):
            again()


@pytest.mark.parametrize("family, tied", [("Llama", True), ("Qwen3", False), ("Gemma2", True)])
def test_merging_on_a_head_that_is_tied_to_the_embeddings_is_refused(family, tied, tmp_path):
    peft_folder(tmp_path, tiny(family, tie_word_embeddings=tied), target_modules=["q_proj", "lm_head"])
    model = tiny(family, tie_word_embeddings=tied)
    lora.load(model, tmp_path)
    before = logits(model)
    if tied:
        with pytest.raises(lora.LoRAError, match="tied to the input embeddings.*untie them first"):
            lora.merge(model)
        assert torch.equal(logits(model), before)
    else:
        torch.testing.assert_close(logits(lora.merge(model)), before, atol=1e-4, rtol=1e-4)
