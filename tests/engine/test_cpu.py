"""pytest tests/engine/test_cpu.py: faster products and norms give what torch gives."""

import platform

import pytest
import torch
from conftest import FAMILIES, random_prompts, randomise, tiny
from torch import nn

import lora
from engine import cpu, running

needs_onednn = pytest.mark.skipif(not cpu.HAS_ONEDNN, reason="this build of torch has no oneDNN")


def pair(d_in, d_out, bias):
    """A frozen linear layer of torch's and one of ours with the same weights."""
    plain = nn.Linear(d_in, d_out, bias=bias).requires_grad_(False)
    ours = nn.Linear(d_in, d_out, bias=bias).requires_grad_(False)
    ours.load_state_dict(plain.state_dict())
    ours.__class__ = cpu.FrozenLinear
    return plain, ours


def test_torch_still_has_the_product_that_has_no_public_name():
    """Without it every run on AMD would be slower, and nothing else would say so."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    assert hasattr(torch.ops.mkldnn, "_linear_pointwise")
    assert cpu.HAS_ONEDNN


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 576), (98, 576), (2, 37, 576), (0, 576)])
def test_a_frozen_layer_and_its_gradient_are_those_of_torch(shape, bias):
    plain, ours = pair(576, 192, bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y = x.detach().clone().requires_grad_()
    ours(x).sin().sum().backward()
    plain(y).sin().sum().backward()
    torch.testing.assert_close(ours(x), plain(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours(x), ours(x.detach())), "the same with and without a graph"


def test_a_layer_that_trains_is_left_to_torch():
    plain, ours = pair(8, 8, True)
    ours.weight.requires_grad_(True)
    x = torch.randn(2, 8)
    assert torch.equal(ours(x), plain(x))
    ours(x).sum().backward()
    assert ours.weight.grad is not None


def test_a_layer_in_bfloat16_is_left_to_torch():
    plain, ours = pair(8, 8, True)
    x = torch.randn(2, 8).bfloat16()
    assert torch.equal(ours.bfloat16()(x), plain.bfloat16()(x))


@pytest.mark.parametrize("family", ["Qwen3", "Llama", "Gemma2"])
def test_a_faster_model_is_the_same_model(family, monkeypatch):
    monkeypatch.setattr(cpu, "PREFER_ONEDNN", cpu.HAS_ONEDNN)  # as on AMD, whatever this is
    plain = tiny(family)
    quick = tiny(family)
    cpu.speed_up(quick)
    tokens = torch.tensor(random_prompts([20, 20]))
    torch.testing.assert_close(quick(tokens).logits, plain(tokens).logits, atol=1e-4, rtol=1e-4)
    assert cpu.FrozenLinear in {type(module) for module in quick.modules()}


LENGTHS = [5, 30, 12]  # of the rows of a padded batch


def padded_gradients(model):
    """Logits at the last token of three rows in one padded batch, and the gradient that they give
    every LoRA weight.
    """
    lora.add(model)
    randomise(model)
    last = [length - 1 for length in LENGTHS]
    logits = running.logits_at(model, random_prompts(LENGTHS), [0, 1, 2], last)
    logits.sin().sum().backward()
    return logits, {name: weight.grad for name, weight in lora.weights(model).items()}


@pytest.mark.parametrize("prefer_onednn", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_leaving_out_padding_changes_neither_outputs_nor_gradients(
    family, prefer_onednn, monkeypatch
):
    monkeypatch.setattr(cpu, "PREFER_ONEDNN", prefer_onednn and cpu.HAS_ONEDNN)
    logits, gradients = padded_gradients(tiny(family))
    quick = tiny(family)
    cpu.speed_up(quick)
    quick_logits, quick_gradients = padded_gradients(quick)
    torch.testing.assert_close(quick_logits, logits, atol=1e-4, rtol=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(quick_gradients[name], gradient, atol=1e-4, rtol=1e-3)


def test_frozen_layers_multiply_real_tokens_only(monkeypatch):
    monkeypatch.setattr(cpu, "PREFER_ONEDNN", False)
    rows = []

    def linear(x, weight, bias=None):
        rows.append(x.shape[:-1].numel())
        return product(x, weight, bias)

    product = torch.nn.functional.linear
    model = tiny("Qwen3")
    cpu.speed_up(model)
    monkeypatch.setattr(cpu.F, "linear", linear)
    running.logits_at(model, random_prompts(LENGTHS), [0, 1], [4, 29])
    assert rows[-1] == 2, "the head"
    assert set(rows[:-1]) == {5 + 30 + 12}
    rows.clear()
    running.logits_at(model, random_prompts([9, 9]), [0], [8])
    assert set(rows[:-1]) == {18}, "no padding"


def test_padding_is_forgotten_also_after_an_error():
    with pytest.raises(ZeroDivisionError), cpu.skip_padding([3, 9], torch.device("cpu")):
        assert cpu._real_tokens.shape == (2, 9)
        assert cpu._real_tokens.places.tolist() == [0, 1, 2, *range(9, 18)]
        raise ZeroDivisionError
    assert cpu._real_tokens is None
    with cpu.skip_padding([3, 9], torch.device("cuda")):
        assert cpu._real_tokens is None, "a GPU would gain nothing"


def test_the_norms_that_are_named_are_found_and_replaced():
    """A norm that was renamed, or keeps its epsilon elsewhere, would no longer be any faster."""
    for family in ("Qwen3", "Llama", "Qwen2", "Mistral"):
        model = tiny(family)
        cpu.speed_up(model)
        norm = model.get_decoder().norm
        assert type(norm).__name__ in cpu.NORMS
        x = torch.randn(3, 32)
        expected = x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
        torch.testing.assert_close(norm(x), expected * norm.weight)
        assert "forward" in vars(norm), "replaced"


def test_ia2_plain_leaves_a_model_alone(monkeypatch):
    monkeypatch.setattr(cpu, "PREFER_ONEDNN", cpu.HAS_ONEDNN)
    monkeypatch.setenv("IA2_PLAIN", "1")
    model = tiny("Llama")
    cpu.speed_up(model)
    assert cpu.FrozenLinear not in {type(module) for module in model.modules()}
    assert "forward" not in vars(model.get_decoder().norm)


@pytest.mark.parametrize(
    "device, processor, expected",
    [
        ("cpu", "AuthenticAMD avx2", torch.float32),
        ("cpu", "AuthenticAMD avx512_bf16", torch.bfloat16),
        ("cpu", "", torch.float32),
        ("cpu", "GenuineIntel avx512_bf16 amx_bf16 amx_tile", torch.bfloat16),
        ("cpu", "GenuineIntel avx512_bf16", torch.float32),
        ("cuda", "AuthenticAMD avx2", torch.bfloat16),
    ],
)
def test_bfloat16_only_where_its_products_are_fast(device, processor, expected, monkeypatch):
    monkeypatch.setattr(cpu, "CPU", processor)
    assert cpu.best_dtype(torch.device(device)) == expected


@pytest.mark.parametrize(
    "told, expected",
    [
        ("vendor_id : Maker\nmodel name\t: Some Processor 9\nflags : sse", "Some Processor 9"),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", "arm64"),  # Linux on ARM tells no name
        ("arm", "arm64"),  # a Mac
    ],
)
def test_a_processor_has_a_name_on_any_system(told, expected, monkeypatch):
    monkeypatch.setattr(cpu, "CPU", told)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert cpu.name() == expected
