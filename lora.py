"""LoRA by hand (Hu et al., 2021): y = W x + (alpha / r) B A x on the projections of self-attention.

A (r, d_in) and B (d_out, r) are trained, W (d_out, d_in) is frozen. B starts at zero, so a fresh
adapter changes nothing. `engine/peft_files.py` writes adapters to disk and reads them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PROJECTIONS = ("q_proj", "k_proj", "o_proj")  # the paper trains W_Q, W_K and W_O


class LoRAError(ValueError):
    """An adapter and a model that do not fit, in one sentence."""


class LoRALinear(nn.Module):
    """A frozen linear layer with a low-rank update beside it.

    A and B are float32 also on a bfloat16 model: Adam's small steps would round to nothing there.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float):
        super().__init__()
        device = linear.weight.device
        self.linear = linear
        self.rank = rank
        self.scale = scale  # alpha / r
        self.enabled = True
        self.A = nn.Parameter(torch.zeros(rank, linear.in_features, device=device))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)  # (..., d_out)
        if not self.enabled:
            return y
        update = self.scale * (x.float() @ self.A.T) @ self.B.T
        return y + update.to(y.dtype)


def layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The wrapped projections by module name, in the order of the model."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every A and B, under the names that PEFT gives them in its files."""
    parameters = {}
    for name, layer in layers(model).items():
        parameters[f"{name}.lora_A.weight"] = layer.A
        parameters[f"{name}.lora_B.weight"] = layer.B
    return parameters


def add(model, rank=8, alpha=8, projections=PROJECTIONS, seed=0) -> None:
    """Freeze the model and wrap the projections of every self-attention.

    Raises LoRAError if a layer lacks one of them or the model has an adapter already.
    """
    name = model.name_or_path or type(model).__name__
    if layers(model):
        raise LoRAError(f"{name} has an adapter already; load it again")
    wanted = []
    for layer in getattr(model.get_decoder(), "layers", [None]):
        attention = getattr(layer, "self_attn", None)
        wanted += [getattr(attention, projection, None) for projection in projections]
    if not wanted or not all(isinstance(module, nn.Linear) for module in wanted):
        raise LoRAError(
            f"{name} has no {', '.join(projections)} of its own in every layer; "
            "use a Llama, Qwen or Gemma model"
        )
    model.requires_grad_(False)
    for path, module in list(model.named_modules()):
        if module in wanted:
            model.set_submodule(path, LoRALinear(module, rank, alpha / rank))
    reset(model, seed)


def reset(model: nn.Module, seed: int = 0) -> None:
    """Start afresh: A Kaiming-uniform as in nn.Linear (a = sqrt(5)), drawn by seed; B zero."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers(model).values():
        bound = layer.linear.in_features**-0.5
        A = torch.empty(layer.A.shape).uniform_(-bound, bound, generator=generator)
        layer.A.data.copy_(A)
        layer.B.data.zero_()


@contextmanager
def disable(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is the base model, whatever happens in it."""
    before = {layer: layer.enabled for layer in layers(model).values()}
    try:
        for layer in before:
            layer.enabled = False
        yield
    finally:
        for layer, enabled in before.items():
            layer.enabled = enabled


def state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the adapter's weights, by name."""
    return {name: weight.detach().clone() for name, weight in weights(model).items()}


def load_state(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Put the weights of `state` back."""
    for name, weight in weights(model).items():
        weight.data.copy_(saved[name])


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Fold the adapter in, W + (alpha / r) B A, summed in float32, and take the wrappers off.

    Raises LoRAError, and changes nothing, if a sum is not finite in W's dtype or W is also the
    embeddings.
    """
    merged = {}
    for name, layer in layers(model).items():
        if layer.linear.weight is model.get_input_embeddings().weight:
            raise LoRAError(
                f"{name} is tied to the input embeddings, which would change; untie them first"
            )
        total = layer.linear.weight + layer.scale * (layer.B @ layer.A)  # float32, as A and B are
        merged[name] = total.to(layer.linear.weight.dtype)
        if not merged[name].isfinite().all():
            raise LoRAError(
                f"the merged weight of {name} is not finite: it has diverged; train it again"
            )
    for name, layer in layers(model).items():
        layer.linear.weight.copy_(merged[name])
        model.set_submodule(name, layer.linear)
    return model
