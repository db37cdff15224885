"""What makes a CPU faster: no products of padding, oneDNN, each RMSNorm in one call, memory reused,
bfloat16.

`speed_up(model)` is worth 1.2 to 1.4 times the speed with a model of 0.5B parameters on an AMD
processor, a tenth at most with one of 135M. IA2_PLAIN=1 leaves a model as transformers made it;
bfloat16 stays. A GPU and layers that train are left alone.

Most of the time goes into the products of frozen layers. The rows of a batch are padded to the
longest one: of four short texts a third may be padding, on which nothing depends, so these
products leave it out.

torch multiplies float32 matrices with MKL. oneDNN, which comes with torch too, takes two thirds to
nine tenths of its time on AMD processors in the forward pass. In the backward pass MKL is the
faster one, and so it is for both on Intel.

bfloat16 products take a fifth of float32's time with AMX (Intel, 2023) and 0.6 of it with AVX-512
BF16 on AMD (2022). Elsewhere they are slower: 1.8 times on an Intel with AVX-512 BF16 in a virtual
machine without AMX.
"""

import ctypes
import functools
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    """Keep freed memory, and let a frozen `model` use the faster routines, in place."""
    if os.environ.get("IA2_PLAIN"):
        return
    keep_freed_memory()
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FrozenLinear
        elif type(module).__name__ in NORMS and model.dtype == torch.float32:
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


# ---- products of frozen layers -------------------------------------------------------------------


@dataclass
class RealTokens:
    """Which tokens of a batch are no padding."""

    shape: tuple[int, int]  # (B, T) of the batch
    places: Tensor  # (R), of the real tokens among all B * T
    back: Tensor  # (B * T), of each token among the real ones; R for padding


_real_tokens: RealTokens | None = None  # of the pass that runs; None: there is no padding


@contextmanager
def skip_padding(lengths: list[int], device: torch.device) -> Iterator[None]:
    """Inside the block, frozen layers of a model that was sped up leave out padding on a CPU.

    The batch's rows have these lengths and are padded on the right. Padding gets zeros, at which
    no real token of a causal model looks.
    """
    global _real_tokens
    before = _real_tokens
    is_needed = device.type == "cpu" and min(lengths) < max(lengths)
    _real_tokens = find_real_tokens(lengths, device) if is_needed else None
    try:
        yield
    finally:
        _real_tokens = before


def find_real_tokens(lengths: list[int], device: torch.device) -> RealTokens:
    columns = torch.arange(max(lengths), device=device)
    is_real = columns < torch.tensor(lengths, device=device)[:, None]  # (B, T)
    places = is_real.flatten().nonzero()[:, 0]
    back = torch.full((is_real.numel(),), len(places), device=device)
    back[places] = torch.arange(len(places), device=device)
    return RealTokens(tuple(is_real.shape), places, back)


def prefers_onednn(x: Tensor) -> bool:
    return PREFER_ONEDNN and x.dtype == torch.float32


def take(x: Tensor, tokens: RealTokens | None) -> Tensor:
    """The rows of x (B * T, d) that are real tokens (R, d); all of them if `tokens` is None."""
    return x if tokens is None else x.index_select(0, tokens.places)


def put_back(rows: Tensor, tokens: RealTokens | None) -> Tensor:
    """Rows of real tokens (R, d) at their places among all (B * T, d), which are zero elsewhere."""
    if tokens is None:
        return rows
    zero = rows.new_zeros(1, rows.shape[1])
    return torch.cat([rows, zero]).index_select(0, tokens.back)


class FrozenProduct(torch.autograd.Function):
    """x W^T + b for a frozen W and b, of the real tokens among the rows of x (None: of all rows).

    The gradient goes to x alone: dL/dx = dL/dy W.
    """

    @staticmethod
    def forward(context, x: Tensor, weight: Tensor, bias: Tensor | None, tokens) -> Tensor:
        context.save_for_backward(weight)
        context.tokens = tokens
        rows = take(x, tokens)
        if prefers_onednn(x):
            y = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        else:
            y = F.linear(rows, weight, bias)
        return put_back(y, tokens)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = context.saved_tensors
        rows = take(gradient, context.tokens) @ weight
        return put_back(rows, context.tokens), None, None, None


class FrozenLinear(nn.Linear):
    """A linear layer that is never trained, on the CPU. Anything else goes nn.Linear's own way."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.requires_grad or x.device.type != "cpu" or x.dtype != self.weight.dtype:
            return super().forward(x)
        tokens = _real_tokens
        if tokens is not None and x.shape[:-1] == tokens.shape:
            y = FrozenProduct.apply(x.flatten(0, 1), self.weight, self.bias, tokens)
            return y.unflatten(0, tokens.shape)
        if prefers_onednn(x):
            return FrozenProduct.apply(x, self.weight, self.bias, None)
        return super().forward(x)  # the same product, without a call of Python's on the way
