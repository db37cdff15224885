"""pytest tests/test_lora.py: the adapter's algebra, against PEFT and against written-out sums."""
import json

import pytest
import torch
from conftest import random_prompts, randomise, tiny
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

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
        expected = x @ layer.base.weight.T + 10 / 4 * x @ layer.A[0].T @ layer.B[0].T
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
    for name, (A, B) in first.items():
        assert torch.equal(A, again[name][0]) and not torch.equal(A, other[name][0]) and not B.any()
        assert A.abs().max() <= A.shape[1] ** -0.5 and A.abs().max() > 0.9 * A.shape[1] ** -0.5


def test_only_a_and_b_of_q_k_and_o_are_trained(tiny_model):
    lora.add(tiny_model)
    tiny_model(TOKENS).logits.sum().backward()
    names = {name for name, weight in tiny_model.named_parameters() if weight.requires_grad}
    assert len(names) == 3 * 2 * tiny_model.config.num_hidden_layers
    assert all(name.split(".")[-3] in ("q_proj", "k_proj", "o_proj") and name.split(".")[-2] in "AB" for name in names)
    assert all((weight.grad is not None) == weight.requires_grad for weight in tiny_model.parameters())


def test_each_token_uses_its_own_run(tiny_model):
    lora.add(tiny_model, runs=3)
    for run in range(3):
        randomise(tiny_model, run, 0.3)
    alone = []
    for run in range(3):
        with lora.route(tiny_model, torch.full((1, 14), run)):
            alone.append(logits(tiny_model))
    with lora.route(tiny_model, torch.tensor([[0], [2]])), torch.no_grad():
        rows = tiny_model(TOKENS.repeat(2, 1), use_cache=False).logits
    torch.testing.assert_close(rows, torch.cat([alone[0], alone[2]]), atol=1e-4, rtol=1e-4)
    layer, x = next(iter(lora.layers(tiny_model).values())), torch.randn(1, 6, 32)
    owner = torch.tensor([[0, 1, 2, 2, 1, 0]])
    with lora.route(tiny_model, owner), torch.no_grad():
        mixed = layer(x)
    for place, run in enumerate(owner[0].tolist()):
        expected = x[0, place] @ layer.base.weight.T + x[0, place] @ layer.A[run].T @ layer.B[run].T
        torch.testing.assert_close(mixed[0, place], expected, atol=1e-5, rtol=1e-5)


def test_merging_keeps_the_logits_and_takes_the_adapter_off(tiny_model):
    lora.add(tiny_model, alpha=16)
    randomise(tiny_model)
    before = logits(tiny_model)
    merged = lora.merge(tiny_model)
    assert not lora.layers(merged) and not any("base" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits(merged), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
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


def test_merging_a_diverged_adapter_is_refused_and_changes_nothing(tiny_model):
    lora.add(tiny_model)
    before = logits(tiny_model)
    with torch.no_grad():
        list(lora.layers(tiny_model).values())[-1].B[0].fill_(float("inf"))
    with pytest.raises(lora.LoRAError, match="not finite"):
        lora.merge(tiny_model)
    lora.reset(tiny_model)
    assert torch.equal(logits(tiny_model), before)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_peft_loads_what_is_saved_here(family, tmp_path):
    model = tiny(family)
    lora.add(model, rank=4, alpha=12)
    randomise(model)
    lora.save(model, tmp_path)
    theirs = PeftModel.from_pretrained(tiny(family), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [dict(r=8, lora_alpha=8), dict(r=4, lora_alpha=10, use_rslora=True),
                                     dict(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"])])
def test_what_peft_saves_loads_here(options, tmp_path):
    torch.manual_seed(1)
    theirs = get_peft_model(tiny("qwen3"), LoraConfig(**{
        "target_modules": ["q_proj", "k_proj", "o_proj"], "init_lora_weights": False, **options}))
    theirs.eval().save_pretrained(tmp_path)
    model = tiny("qwen3")
    lora.load(model, tmp_path)
    torch.testing.assert_close(logits(model), logits(theirs), atol=1e-4, rtol=1e-4)


def test_a_float32_adapter_on_a_bfloat16_model_agrees_with_peft(tmp_path):
    model = tiny("llama", torch.bfloat16)
    lora.add(model)
    randomise(model)
    assert all(weight.dtype == torch.float32 for weight in lora.parameters(model))
    assert logits(model).dtype == torch.bfloat16
    lora.save(model, tmp_path)
    theirs = PeftModel.from_pretrained(tiny("llama", torch.bfloat16), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), atol=0.05, rtol=0.05)


def test_saving_and_loading_is_exact(tiny_model, tmp_path):
    lora.add(tiny_model, rank=3, alpha=7)
    randomise(tiny_model)
    lora.save(tiny_model, tmp_path)
    state, scale = lora.read(tmp_path)
    assert scale == 7 / 3
    for name, (A, B) in lora.get_state(tiny_model).items():
        assert torch.equal(A, state[name][0]) and torch.equal(B, state[name][1])
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ["k_proj", "o_proj", "q_proj"]


def test_a_model_without_the_projections_is_named():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, name_or_path="my-gpt2"))
    with pytest.raises(lora.LoRAError, match="my-gpt2 has no k_proj, o_proj, q_proj"):
        lora.add(model)


def test_what_does_not_fit_is_one_sentence(tiny_model, tmp_path):
    with pytest.raises(lora.LoRAError, match="not an adapter folder"):
        lora.load(tiny_model, tmp_path)
    other = tiny("llama", hidden_size=64)
    lora.add(other)
    lora.save(other, tmp_path)
    with pytest.raises(lora.LoRAError, match="does not fit"):
        lora.load(tiny_model, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(lora.LoRAError, match="cannot be read"):
        lora.read(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    lora.save(other, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(lora.LoRAError, match="not plain LoRA"):
        lora.read(tmp_path)
    lora.add(tiny_model)
    with pytest.raises(lora.LoRAError, match="already carries"):
        lora.add(tiny_model)
    with pytest.raises(lora.LoRAError, match="another model or rank"):
        lora.set_state(tiny_model, {name: (A[:2], B) for name, (A, B) in lora.get_state(tiny_model).items()})
