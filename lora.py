"""LoRA by hand (Hu et al., 2021): y = W x + (alpha / r) B A x, on the projections of self-attention."""
import json
import re
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

PROJECTIONS = ("q_proj", "k_proj", "o_proj")  # the paper trains W_Q, W_K and W_O
PREFIX = "base_model.model."                  # PEFT's name for the model inside its files
PLAIN = {"peft_type": ["LORA"], "bias": ["none"], "init_lora_weights": [True, False, "gaussian", "eva"]} | {
    key: [None, False, {}, []] for key in "use_dora lora_bias modules_to_save rank_pattern alpha_pattern "
    "layer_replication target_parameters trainable_token_indices alora_invocation_tokens".split()}


class LoRAError(ValueError):
    """An adapter and a model that do not fit, in one sentence."""


class LoRALinear(nn.Module):
    """A frozen linear layer W (d_out, d_in) plus A (r, d_in) and B (d_out, r), which train, in float32."""

    def __init__(self, linear, rank, scale):
        super().__init__()
        self.linear, self.rank, self.scale, self.enabled = linear, rank, scale, True
        self.A = nn.Parameter(torch.zeros(rank, linear.in_features, device=linear.weight.device))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))

    def forward(self, x):
        y = self.linear(x)                                                                      # (..., d_out)
        return y + (self.scale * (x.float() @ self.A.T) @ self.B.T).to(y.dtype) if self.enabled else y


def layers(model):
    """The wrapped projections: {module name: LoRALinear}, in the order of the model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def weights(model):
    """Every A and B, and nothing else, under PEFT's names: {"<module name>.lora_A.weight": parameter}."""
    return {f"{name}.lora_{letter}.weight": getattr(layer, letter)
            for name, layer in layers(model).items() for letter in "AB"}


def add(model, rank=8, alpha=8, projections=PROJECTIONS, seed=0):
    """Freeze the model and wrap the projections of every self-attention; B = 0, so nothing changes yet."""
    found = [getattr(getattr(layer, "self_attn", None), name, None) for name in projections
             for layer in getattr(model.get_decoder(), "layers", [None])]
    if not all(isinstance(module, nn.Linear) for module in found):
        raise LoRAError(f"{model.name_or_path or type(model).__name__} " + (
            "has an adapter already; load it again" if layers(model) else
            f"has no {', '.join(projections)} of its own in every layer; use a Llama, Qwen or Gemma model"))
    model.requires_grad_(False)
    for name in [name for name, module in model.named_modules() if module in found]:
        model.set_submodule(name, LoRALinear(model.get_submodule(name), rank, alpha / rank))
    reset(model, seed)


def reset(model, seed=0):
    """Start again: A Kaiming-uniform as in nn.Linear (a = sqrt(5)), drawn by seed; B zero."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers(model).values():
        bound = layer.linear.in_features ** -0.5
        layer.A.data.copy_(torch.empty(layer.A.shape).uniform_(-bound, bound, generator=generator))
        layer.B.data.zero_()


@contextmanager
def disable(model):
    """Inside the block the model is the base model, whatever happens in it."""
    before = {layer: layer.enabled for layer in layers(model).values()}
    try:
        for layer in before:
            layer.enabled = False
        yield
    finally:
        for layer, enabled in before.items():
            layer.enabled = enabled


def get_state(model):
    """A copy of the adapter's weights, by name."""
    return {name: weight.detach().clone() for name, weight in weights(model).items()}


def set_state(model, state):
    """Put the weights of `get_state` back."""
    for name, weight in weights(model).items():
        weight.data.copy_(state[name])


@torch.no_grad()
def merge(model):
    """Fold the adapter in, W + (alpha / r) B A, summed in float32. LoRAError, and no change, if it fails."""
    merged = {}
    for name, layer in layers(model).items():
        merged[name] = layer.linear.weight + layer.scale * (layer.B @ layer.A)
        if layer.linear.weight is model.get_input_embeddings().weight:
            raise LoRAError(f"{name} is tied to the input embeddings, which would change; untie them first")
        if not merged[name].isfinite().all():
            raise LoRAError(f"the merged weight of {name} is not finite: it has diverged; train it again")
    for name, layer in layers(model).items():
        layer.linear.weight.copy_(merged[name])
        model.set_submodule(name, layer.linear)
    return model


def save(model, folder):
    """Write the adapter into the existing `folder` in PEFT's layout."""
    names, (first, *_) = {name.rpartition(".")[2] for name in layers(model)}, layers(model).values()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": model.name_or_path,
              "r": first.rank, "lora_alpha": first.scale * first.rank, "target_modules": sorted(names)}
    Path(folder, "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {PREFIX + name: weight.cpu().contiguous() for name, weight in get_state(model).items()}
    save_file(state, Path(folder, "adapter_model.safetensors"), metadata={"format": "pt"})


def load(model, folder):
    """Put an adapter, ours or PEFT's, on a plain model. LoRAError if it is more than LoRA or does not fit."""
    try:
        config = json.loads(Path(folder, "adapter_config.json").read_text(encoding="utf-8"))
        state = load_file(Path(folder, "adapter_model.safetensors"))
        rank, alpha, targets = config.get("r", 8), config.get("lora_alpha", 8), config["target_modules"]
    except Exception as error:  # json and safetensors have many kinds of broken file
        raise LoRAError(f"the adapter in {folder} cannot be read ({error!r}): give adapter_config.json, an "
                        "object, and adapter_model.safetensors (PEFT can save a .bin as such)") from None
    more = [f"{key}={config[key]}" for key, plain in PLAIN.items() if config.get(key, plain[0]) not in plain]
    if more or layers(model):
        raise LoRAError(f"the adapter in {folder} is more than LoRA ({', '.join(more)}); merge it with PEFT"
                        if more else "the model has an adapter already; load it again")
    state = {key.removeprefix(PREFIX).replace(".default.", "."): weight for key, weight in state.items()}
    match = targets if isinstance(targets, str) else rf"(.*\.)?({'|'.join(map(re.escape, targets))})"
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(match, n)}
    own = {f"{n}.base_layer.weight": m.weight for n, m in found.items()}  # PEFT adds the weight of a head
    state = {k: w for k, w in state.items() if k not in own or not torch.equal(w.to(own[k]), own[k])}
    shapes = {f"{name}.lora_A.weight": (rank, m.in_features) for name, m in found.items()} | {
        f"{name}.lora_B.weight": (m.out_features, rank) for name, m in found.items()}
    for key in {**shapes, **state} or ["any LoRA weight"]:
        has = tuple(state[key].shape) if key in state else "missing"
        if has != shapes.get(key) or not state[key].isfinite().all():
            raise LoRAError(f"the adapter in {folder} does not fit: {key} is {has} or not finite, instead of "
                            f"{shapes.get(key)}; use its own model, or save it again, whole and alone (under "
                            "ZeRO-3, gathered)")
    model.requires_grad_(False)
    scale = alpha / (rank ** 0.5 if config.get("use_rslora") else rank)
    for name, module in found.items():
        model.set_submodule(name, LoRALinear(module, rank, scale))
    set_state(model, state)
