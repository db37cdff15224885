"""pytest tests/test_kernels.py: the faster routines give what torch's own layers give, gradients and all, and only where they may."""
import copy

import pytest
import torch
from conftest import random_prompts, tiny
from torch import nn

import kernels

needs_oneDNN = pytest.mark.skipif(not kernels.available(), reason="this build of torch has no oneDNN")


def pair(d_in, d_out, bias):
    """A frozen linear layer of torch's and one of ours on the same weights."""
    plain = nn.Linear(d_in, d_out, bias=bias).requires_grad_(False)
    ours = copy.copy(plain)
    ours.__class__ = kernels.FrozenLinear
    return plain, ours


@needs_oneDNN
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 576), (98, 576), (2, 37, 576), (0, 576)])
def test_a_frozen_layer_and_its_gradient_are_torchs(shape, bias):
    plain, ours = pair(576, 192, bias)
    x, y = (torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    ours(x).sin().sum().backward()
    plain(y).sin().sum().backward()
    torch.testing.assert_close(ours(x), plain(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours(x), ours(x.detach())), "the same with and without a graph"


@needs_oneDNN
def test_views_are_read_right():
    plain, ours = pair(48, 40, True)
    block = torch.randn(3, 9, 48)
    for x in (block[:, 2:7], block.transpose(0, 1), block.flatten(0, 1)[::2], torch.randn(48, 11).T):
        leaf = x.detach().requires_grad_()
        torch.testing.assert_close(ours(leaf), plain(leaf), atol=1e-5, rtol=1e-5)
        weights = torch.randn(*leaf.shape[:-1], 40).transpose(0, -2)  # the gradient is a view, too
        ours(leaf).transpose(0, -2).backward(weights)
        torch.testing.assert_close(leaf.grad, weights.transpose(0, -2) @ plain.weight, atol=1e-5, rtol=1e-5)


def test_layers_that_train_or_are_not_float32_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(kernels, "product", lambda *_: pytest.fail("oneDNN has no business here"))
    _, ours = pair(8, 8, True)
    ours.weight.requires_grad_(True)
    ours(torch.randn(2, 8)).sum().backward()
    assert ours.weight.grad is not None
    assert ours.requires_grad_(False).to(torch.bfloat16)(torch.randn(2, 8).bfloat16()).dtype == torch.bfloat16


@needs_oneDNN
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_model_stays_the_same(family):
    plain, fast = tiny(family), tiny(family)
    before = dict(fast.named_parameters())
    kernels.speed_up(fast)
    tokens = torch.tensor(random_prompts([20, 20]))
    torch.testing.assert_close(fast(tokens).logits, plain(tokens).logits, atol=1e-4, rtol=1e-4)
    assert all(weight is before[name] for name, weight in fast.named_parameters())
    kinds = {type(module) for module in fast.modules()}
    assert {kernels.FrozenLinear, kernels.FusedRMSNorm} <= kinds and not {nn.Linear, type(plain.model.norm)} & kinds


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_fused_norms_change_no_bit(family, monkeypatch):
    monkeypatch.setattr(kernels, "available", lambda: False)
    plain, fast = tiny(family), tiny(family)
    kernels.speed_up(fast)
    tokens = torch.tensor(random_prompts([20]))
    assert torch.equal(fast(tokens).logits, plain(tokens).logits)


def test_without_oneDNN_the_layers_stay(monkeypatch):
    monkeypatch.setattr(kernels, "available", lambda: False)
    model = tiny("llama")
    kernels.speed_up(model)
    assert kernels.FrozenLinear not in {type(module) for module in model.modules()}
