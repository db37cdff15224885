"""What makes a CPU faster: products by oneDNN, each RMSNorm in one call, memory used again, bfloat16.

IA2_PLAIN=1 turns all but bfloat16 off.

torch multiplies float32 matrices with MKL, which on AMD is slow for few rows: with 100 tokens oneDNN, which
comes with torch too, takes two thirds of the time, for one token half of it. On Intel, where MKL is faster,
on other machines, on a GPU, in bfloat16 and for layers that train, products are torch's own.

bfloat16 products take a fifth of float32's time with AMX (Intel, 2023) and 0.6 of it with AVX-512 BF16 on AMD
(2022). Elsewhere they are slower: 1.8 times on an Intel with AVX-512 BF16 in a virtual machine without AMX.
"""
import ctypes
import functools
import os
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")  # x / rms(x) * weight
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else platform.processor()
PREFER_ONEDNN = HAS_ONEDNN and "AuthenticAMD" in CPU
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

def best_dtype(device):
    """bfloat16 where its products are fast: on a GPU, with AMX, on AMD with AVX-512 BF16; else float32."""
    amx, amd = "amx_bf16" in CPU, "AuthenticAMD" in CPU and "avx512_bf16" in CPU
    return torch.bfloat16 if device.type == "cuda" or amx or amd else torch.float32

class FrozenProduct(torch.autograd.Function):
    """x W^T + b by oneDNN for a frozen W and b: the gradient goes to x alone, dL/dx = dL/dy W."""

    @staticmethod
    def forward(context, x, weight, bias):
        context.save_for_backward(weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(context, gradient):
        weight, = context.saved_tensors
        return torch.ops.mkldnn._linear_pointwise(gradient, weight.T, None, "none", [], ""), None, None

class FrozenLinear(nn.Linear):
    """A linear layer that is never trained, in float32 on the CPU; anything else goes nn.Linear's own way."""

    def forward(self, x):
        trains, on_cpu = self.weight.requires_grad, x.device.type == "cpu"
        if trains or not on_cpu or not x.dtype == self.weight.dtype == torch.float32:
            return super().forward(x)
        return FrozenProduct.apply(x, self.weight, self.bias)

def speed_up(model):
    """Keep freed memory, and let a frozen float32 `model` use these routines, in place."""
    if os.environ.get("IA2_PLAIN"):
        return
    if platform.libc_ver()[0] == "glibc":  # which else gives a large tensor's memory back, and gets it zeroed
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**30)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    if model.dtype != torch.float32:
        return
    for module in model.modules():
        if type(module) is nn.Linear and PREFER_ONEDNN:
            module.__class__ = FrozenLinear
        elif type(module).__name__ in NORMS:
            module.forward = functools.partial(F.rms_norm, normalized_shape=module.weight.shape,
                                               weight=module.weight, eps=module.variance_epsilon)
