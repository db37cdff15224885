"""pytest tests/test_lora.py: the adapter's algebra, against PEFT and against written-out sums.

Files of adapters are tested in tests/engine/test_peft_files.py.
"""

import pytest
import torch
from conftest import FAMILIES, random_prompts, randomise, tiny
from peft import LoraConfig, get_peft_model
from torch import nn

import lora

TOKENS = torch.tensor(random_prompts([14]))


@torch.no_grad()
def logits(model):
    return model(TOKENS, use_cache=False).logits.float()


def last_layer(model):
    return list(lora.layers(model).values())[-1]


def by_peft(model, source, rank, alpha):
    """`model` with PEFT's LoRA, given the weights of the adapter that is on `source`."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(lora.PROJECTIONS))
    wrapped = get_peft_model(model, config).eval()
    weights = lora.state(source)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            ours = name.removeprefix("base_model.model.").replace(".default", "")
            parameter.data.copy_(weights.pop(ours))
    assert not weights, "every weight has its place in PEFT's"
    return wrapped


# ---- what a layer computes -----------------------------------------------------------------------


def test_a_layer_is_w_x_plus_scaled_b_a_x(tiny_model):
    lora.add(tiny_model, rank=4, alpha=10)
    randomise(tiny_model)
    x = torch.randn(3, 5, 32)
    for layer in list(lora.layers(tiny_model).values())[:2]:
        update = 10 / 4 * layer.B @ layer.A  # (d_out, d_in)
        expected = x @ (layer.linear.weight + update).T
        with torch.no_grad():
            torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("family", ["Qwen3", "Llama", "Qwen2"])
def test_logits_and_gradients_are_pefts(family):
    """Qwen2 has biases beside the weights that are adapted."""
    ours = tiny(family)
    lora.add(ours, rank=4, alpha=12)
    randomise(ours)
    theirs = by_peft(tiny(family), ours, rank=4, alpha=12)
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-4, rtol=1e-4)

    for model in (ours, theirs):
        model(TOKENS, use_cache=False).logits.square().mean().backward()
    their_gradients = {}
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            their_gradients[name.replace(".default", "")] = parameter.grad
    assert len(their_gradients) == len(lora.weights(ours))
    for name, parameter in lora.weights(ours).items():
        theirs_here = their_gradients[f"base_model.model.{name}"]
        torch.testing.assert_close(parameter.grad, theirs_here, atol=1e-4, rtol=1e-3)


def test_on_a_bfloat16_model_the_adapter_is_float32_and_as_exact_as_pefts():
    exact = tiny("Llama")
    lora.add(exact)
    randomise(exact)
    ours = tiny("Llama", torch.bfloat16)
    lora.add(ours)
    lora.load_state(ours, lora.state(exact))
    theirs = by_peft(tiny("Llama", torch.bfloat16), exact, rank=8, alpha=8)
    assert {weight.dtype for weight in lora.weights(ours).values()} == {torch.float32}
    assert ours(TOKENS).logits.dtype == torch.bfloat16
    our_error = (logits(ours) - logits(exact)).abs().mean()
    their_error = (logits(theirs) - logits(exact)).abs().mean()
    assert 0 < our_error < 1.5 * their_error


# ---- what is wrapped and trained -----------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_only_a_and_b_of_q_k_and_o_are_trained(family):
    model = tiny(family).requires_grad_(True)
    lora.add(model)
    model(TOKENS).logits.sum().backward()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 3 * 2 * model.config.num_hidden_layers == len(lora.weights(model))
    for name in trained:
        *_, attention, projection, letter = name.split(".")
        assert attention == "self_attn"
        assert projection in ("q_proj", "k_proj", "o_proj")
        assert letter in ("A", "B")
    for weight in model.parameters():
        assert (weight.grad is not None) == weight.requires_grad


def test_weights_have_the_names_and_shapes_of_pefts_files(tiny_model):
    lora.add(tiny_model, rank=4)
    weights = lora.weights(tiny_model)
    name = "model.layers.1.self_attn.k_proj"
    assert weights[f"{name}.lora_A.weight"].shape == (4, 32)
    assert weights[f"{name}.lora_B.weight"].shape == (16, 4), "two heads of keys, 8 wide"
    assert list(lora.layers(tiny_model)) == [
        f"model.layers.{i}.self_attn.{projection}"
        for i in range(3)
        for projection in ("q_proj", "k_proj", "o_proj")
    ]


def test_other_projections_can_be_chosen(tiny_model):
    lora.add(tiny_model, projections=("v_proj",))
    assert {name.split(".")[-1] for name in lora.layers(tiny_model)} == {"v_proj"}


def test_a_second_adapter_is_refused_and_the_first_stays(tiny_model):
    lora.add(tiny_model)
    randomise(tiny_model)
    before = logits(tiny_model)
    with pytest.raises(lora.LoRAError, match="has an adapter already; load it again"):
        lora.add(tiny_model)
    assert torch.equal(logits(tiny_model), before)


def test_a_projection_that_one_layer_lacks_is_refused_and_nothing_is_wrapped(tiny_model):
    tiny_model.model.layers[1].self_attn.q_proj = nn.Identity()
    with pytest.raises(lora.LoRAError, match="no q_proj, k_proj, o_proj of its own in every layer"):
        lora.add(tiny_model)
    assert not lora.layers(tiny_model)


# ---- on, off, and back to the start --------------------------------------------------------------


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


def test_disable_ends_also_after_an_error(tiny_model):
    lora.add(tiny_model)
    randomise(tiny_model)
    with_adapter = logits(tiny_model)
    with pytest.raises(RuntimeError), lora.disable(tiny_model), lora.disable(tiny_model):
        raise RuntimeError
    assert torch.equal(logits(tiny_model), with_adapter)


def test_disable_inside_disable_ends_where_the_outer_one_does(tiny_model):
    before = logits(tiny_model)
    lora.add(tiny_model)
    randomise(tiny_model)
    with lora.disable(tiny_model):
        with lora.disable(tiny_model):
            assert torch.equal(logits(tiny_model), before)
        assert torch.equal(logits(tiny_model), before)
    assert not torch.equal(logits(tiny_model), before)


def test_reset_draws_a_as_a_linear_layer_does_and_by_seed(tiny_model):
    lora.add(tiny_model, seed=3)
    first = lora.state(tiny_model)
    lora.reset(tiny_model, seed=4)
    other = lora.state(tiny_model)
    lora.reset(tiny_model, seed=3)
    again = lora.state(tiny_model)
    for name, weight in first.items():
        assert torch.equal(weight, again[name])
        if "lora_B" in name:
            assert not weight.any()
            continue
        assert not torch.equal(weight, other[name])
        linear = nn.Linear(weight.shape[1], 1000, bias=False)
        bound = linear.weight.abs().max().item()  # of torch's own initialisation
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.1)
        assert weight.std().item() == pytest.approx(linear.weight.std().item(), rel=0.15)


def test_a_state_is_a_copy_that_brings_the_adapter_back(tiny_model):
    lora.add(tiny_model)
    randomise(tiny_model)
    before = logits(tiny_model)
    kept = lora.state(tiny_model)
    randomise(tiny_model, seed=2)
    assert not torch.equal(logits(tiny_model), before)
    lora.load_state(tiny_model, kept)
    assert torch.equal(logits(tiny_model), before)
    kept["model.layers.0.self_attn.q_proj.lora_B.weight"].zero_()
    assert torch.equal(logits(tiny_model), before), "what is loaded is a copy too"


# ---- merging -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_keeps_the_logits_and_takes_the_adapter_off(family):
    model = tiny(family)
    names = [name for name, _ in model.named_parameters()]
    lora.add(model, alpha=16)
    randomise(model)
    before = logits(model)
    merged = lora.merge(model)
    assert merged is model
    assert not lora.layers(merged)
    assert [name for name, _ in merged.named_parameters()] == names
    torch.testing.assert_close(logits(merged), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
def test_a_merged_bfloat16_model_is_within_its_rounding(family):
    """Merged or not, the distance from the float32 model is bfloat16's: at most twice the other."""
    exact = tiny(family)
    rounded = tiny(family, torch.bfloat16)
    for model in (exact, rounded):
        lora.add(model)
        randomise(model)
    unmerged_logits = logits(rounded)
    merged_logits = logits(lora.merge(rounded))
    error = (unmerged_logits - logits(exact)).abs().max()
    merged_error = (merged_logits - logits(exact)).abs().max()
    assert 0 < merged_error < 2 * error
    assert (merged_logits - unmerged_logits).abs().max() < 2 * error


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_merging_what_has_diverged_is_refused_and_changes_nothing(value, tiny_model):
    lora.add(tiny_model)
    before = logits(tiny_model)
    last_layer(tiny_model).B.data.fill_(value)
    with pytest.raises(lora.LoRAError, match="not finite: it has diverged; train it again"):
        lora.merge(tiny_model)
    lora.reset(tiny_model)
    assert torch.equal(logits(tiny_model), before)


def test_a_merge_that_overflows_in_the_weights_dtype_is_refused():
    model = tiny("Llama", torch.float16)
    lora.add(model)
    last_layer(model).B.data.fill_(1e7)  # finite in float32
    with pytest.raises(lora.LoRAError, match="is not finite"):
        lora.merge(model)


def test_a_model_without_layers_has_no_place_for_an_adapter():
    with pytest.raises(lora.LoRAError, match="of its own in every layer"):
        lora.add(tiny("Llama", num_hidden_layers=0))


@pytest.mark.parametrize("family, tied", [("Llama", True), ("Qwen3", False), ("Gemma2", True)])
def test_merging_on_a_head_that_is_tied_to_the_embeddings_is_refused(family, tied):
    model = tiny(family, tie_word_embeddings=tied)
    lora.add(model)
    model.lm_head = lora.LoRALinear(model.lm_head, rank=2, scale=1.0)
    lora.reset(model)
    randomise(model)
    before = logits(model)
    if tied:
        with pytest.raises(lora.LoRAError, match="lm_head is tied to the input embeddings.*untie"):
            lora.merge(model)
        assert torch.equal(logits(model), before)
    else:
        torch.testing.assert_close(logits(lora.merge(model)), before, atol=1e-4, rtol=1e-4)
