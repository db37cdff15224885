"""The same sums by faster routines on a CPU: matrix products by oneDNN, each RMSNorm in one call. IA2_PLAIN=1 turns them off.

torch multiplies float32 matrices with MKL on x86, which is slow there for few rows: with 100 tokens oneDNN, which
comes with torch too, takes two thirds of the time, for one token half of it. torch's own compiler calls it the same
way. On other machines, on a GPU, in bfloat16 and for layers that train, everything is torch's own.
"""
import os
import platform

import torch
import torch.nn.functional as F
from torch import nn

NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")  # those that are x / rms(x) * weight


def product(x, weight, bias=None):
    """x (..., d_in), weight (d_out, d_in), bias (d_out) -> x W^T + b (..., d_out) by oneDNN; no gradients."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def available():
    """Whether this is an x86 machine and this build of torch has oneDNN's product."""
    return (platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


class FrozenProduct(torch.autograd.Function):
    """W x + b for a frozen W and b: the gradient goes to x alone, dL/dx = dL/dy W."""

    @staticmethod
    def forward(x, weight, bias):
        return product(x, weight, bias)

    @staticmethod
    def setup_context(context, inputs, output):
        context.save_for_backward(inputs[1])

    @staticmethod
    def backward(context, gradient):
        weight, = context.saved_tensors
        return product(gradient, weight.T), None, None


class FrozenLinear(nn.Linear):
    """A linear layer that is never trained, in float32 on the CPU; anything else goes nn.Linear's own way."""

    def forward(self, x):
        """x (..., d_in) -> (..., d_out)."""
        if self.weight.requires_grad or x.device.type != "cpu" or not x.dtype == self.weight.dtype == torch.float32:
            return super().forward(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return FrozenProduct.apply(x, self.weight, self.bias)
        return product(x, self.weight, self.bias)


class FusedRMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) * weight in one call instead of six: to the bit the same in float32, in half the time."""

    def forward(self, x):
        """x (..., d) -> (..., d)."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)


def speed_up(model):
    """Let the linear layers and norms of a frozen float32 `model` use these routines, in place, on the same weights."""
    if model.dtype != torch.float32 or os.environ.get("IA2_PLAIN"):
        return
    faster_products = available()
    for module in model.modules():
        if type(module) is nn.Linear and faster_products:
            module.__class__ = FrozenLinear
        elif type(module).__name__ in NORMS:
            module.__class__ = FusedRMSNorm
