"""What makes a CPU faster: oneDNN, each RMSNorm in one call, memory reused, bfloat16.

`speed_up(model)` is worth 1.1 to 1.5 times the speed. IA2_PLAIN=1 leaves a model as transformers
made it; bfloat16 stays.

torch multiplies float32 matrices with MKL. On AMD processors MKL is slow for few rows: oneDNN,
which comes with torch too, takes two thirds of the time for 100 tokens and half of it for one. MKL
stays in use on Intel, where it is the faster one. A GPU, bfloat16 and layers that train are left
alone as well.

bfloat16 products take a fifth of float32's time with AMX (Intel, 2023) and 0.6 of it with AVX-512
BF16 on AMD (2022). Elsewhere they are slower: 1.8 times on an Intel with AVX-512 BF16 in a virtual
machine without AMX.
"""

import ctypes
import functools
import os
import platform
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Norms that are x / rms(x) * weight and nothing else.
NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
# oneDNN's product has no public name in torch, so it is used only where it is present.
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
M_TRIM_THRESHOLD = -1  # of glibc's malloc.h
M_MMAP_THRESHOLD = -3


def processor() -> str:
    """What the system says of its processor: its maker and, on Linux, its instruction sets."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else platform.processor()


def name() -> str:
    """The processor's name for result rows; where the system tells none, its kind."""
    found = re.search(r"model name\s*:\s*(.+)", CPU)
    return found.group(1) if found else platform.processor() or platform.machine()


CPU = processor()
PREFER_ONEDNN = HAS_ONEDNN and "AuthenticAMD" in CPU


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where its products are fast: a GPU, AMX, AMD's AVX-512 BF16. Else float32."""
    has_amx = "amx_bf16" in CPU
    is_fast_amd = "AuthenticAMD" in CPU and "avx512_bf16" in CPU
    if device.type == "cuda" or has_amx or is_fast_amd:
        return torch.bfloat16
    return torch.float32


def speed_up(model: nn.Module) -> None:
    """Keep freed memory, and let a frozen float32 `model` use the faster routines, in place."""
    if os.environ.get("IA2_PLAIN"):
        return
    keep_freed_memory()
    if model.dtype != torch.float32:
        return
    for module in model.modules():
        if PREFER_ONEDNN and type(module) is nn.Linear:
            module.__class__ = FrozenLinear
        elif type(module).__name__ in NORMS:
            module.forward = functools.partial(
                F.rms_norm,
                normalized_shape=module.weight.shape,
                weight=module.weight,
                eps=module.variance_epsilon,
            )


def keep_freed_memory() -> None:
    """Let glibc keep the memory of large tensors. It would give it back and get it zeroed again."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        # Before 2.35 glibc takes no more than 32 MB; with neither it is left as it is.
        if libc.mallopt(M_MMAP_THRESHOLD, 2**30) or libc.mallopt(M_MMAP_THRESHOLD, 2**25):
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class FrozenProduct(torch.autograd.Function):
    """x W^T + b by oneDNN for a frozen W and b: the gradient goes to x alone, dL/dx = dL/dy W."""

    @staticmethod
    def forward(context, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = context.saved_tensors
        product = torch.ops.mkldnn._linear_pointwise(gradient, weight.T, None, "none", [], "")
        return product, None, None


class FrozenLinear(nn.Linear):
    """A linear layer that is never trained, in float32 on the CPU. Anything else goes nn.Linear's
    own way.
    """

    def forward(self, x: Tensor) -> Tensor:
        is_float32 = x.dtype == self.weight.dtype == torch.float32
        if self.weight.requires_grad or x.device.type != "cpu" or not is_float32:
            return super().forward(x)
        return FrozenProduct.apply(x, self.weight, self.bias)
