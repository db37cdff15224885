"""LoRA by hand (Hu et al., 2021): y = W x + (alpha / r) B A x, on the projections of self-attention."""
import json
import math
import re
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

PROJECTIONS = ("q_proj", "k_proj", "o_proj")  # the paper trains W_Q, W_K and W_O
PREFIX = "base_model.model."                  # PEFT's name for the model inside its files
BEYOND = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "alora_invocation_tokens", "lora_bias",
          "layer_replication", "target_parameters", "trainable_token_indices")  # PEFT's options beyond plain LoRA


class LoRAError(ValueError):
    """An adapter and a model that do not fit, in one sentence."""


class LoRALinear(nn.Module):
    """A frozen linear layer W (d_out, d_in) plus float32 A (r, d_in) and B (d_out, r), which train."""

    def __init__(self, linear, rank, scale):
        super().__init__()
        self.linear, self.rank, self.scale, self.enabled = linear, rank, scale, True
        self.A = nn.Parameter(torch.zeros(rank, linear.in_features, device=linear.weight.device))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))

    def forward(self, x):
        y = self.linear(x)                                                         # (..., d_out)
        return y + (self.scale * (x.float() @ self.A.T) @ self.B.T).to(y.dtype) if self.enabled else y


def layers(model):
    """The wrapped projections: {module name: LoRALinear}, in the order of the model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def weights(model):
    """Every A and B, and nothing else, under PEFT's names: {"<module name>.lora_A.weight": parameter}."""
    return {f"{n}.lora_{letter}.weight": getattr(layer, letter) for n, layer in layers(model).items() for letter in "AB"}


def add(model, rank=8, alpha=8, projections=PROJECTIONS, seed=0):
    """Wrap the projections of every layer's self-attention. B = 0, so nothing changes yet. LoRAError without them."""
    attentions = [getattr(layer, "self_attn", None) for layer in getattr(model.get_decoder(), "layers", [0])]
    found = [getattr(attention, name, None) for attention in attentions for name in projections]
    if not all(isinstance(module, nn.Linear) for module in found):
        why = "an adapter already; load it again" if layers(model) else \
            f"no {', '.join(projections)} of its own in every layer; use one of the Llama, Qwen or Gemma kind"
        raise LoRAError(f"the model {model.config._name_or_path or type(model).__name__} has {why}")
    wrap(model, {name: rank for name, module in model.named_modules() if module in found}, alpha / rank)
    reset(model, seed)


def wrap(model, ranks, scale):
    """Freeze `model` and put an empty LoRALinear over each named module; `ranks` is {module name: r}."""
    model.requires_grad_(False)
    for name, rank in ranks.items():
        model.set_submodule(name, LoRALinear(model.get_submodule(name), rank, scale))


@torch.no_grad()
def reset(model, seed=0):
    """Start again: A Kaiming-uniform as in nn.Linear (a = sqrt(5)), drawn by seed; B zero."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers(model).values():
        bound = 1 / math.sqrt(layer.linear.in_features)
        layer.A.copy_(torch.empty(layer.A.shape).uniform_(-bound, bound, generator=generator))
        layer.B.zero_()


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
    """A real copy of the adapter's weights, by name."""
    return {name: weight.detach().clone() for name, weight in weights(model).items()}


@torch.no_grad()
def set_state(model, state):
    """Put the weights of `get_state` back."""
    for name, weight in weights(model).items():
        weight.copy_(state[name])


@torch.no_grad()
def merge(model):
    """Fold the adapter into the weights: W + (alpha / r) B A, summed in float32. LoRAError, and no change, if it fails."""
    merged = {}
    for name, layer in layers(model).items():
        merged[name] = layer.linear.weight + layer.scale * (layer.B @ layer.A)
        if layer.linear.weight is model.get_input_embeddings().weight:
            raise LoRAError(f"{name} is tied to the input embeddings, which would change too; untie them first")
        if not merged[name].isfinite().all():
            raise LoRAError(f"the merged weight of {name} is not finite: the adapter has diverged; train again")
    for name, layer in layers(model).items():
        layer.linear.weight.copy_(merged[name])
        model.set_submodule(name, layer.linear)
    return model


def save(model, folder, base_model=None):
    """Write the adapter into the existing `folder` in PEFT's layout; `base_model` is the model that it is for."""
    first, names = next(iter(layers(model).values())), {name.rpartition(".")[2] for name in layers(model)}
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_model, "bias": "none",
              "r": first.rank, "lora_alpha": first.scale * first.rank, "target_modules": sorted(names)}
    Path(folder, "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {PREFIX + name: weight.cpu().contiguous() for name, weight in get_state(model).items()}
    save_file(state, Path(folder, "adapter_model.safetensors"), metadata={"format": "pt"})


def load(model, folder):
    """Put an adapter that we or PEFT saved onto a plain model. LoRAError unless it is plain LoRA, whole, and fits."""
    try:
        config = json.loads(Path(folder, "adapter_config.json").read_text(encoding="utf-8"))
        state = load_file(Path(folder, "adapter_model.safetensors"))
        rank, alpha, targets = config.get("r", 8), config.get("lora_alpha", 8), config.get("target_modules")
    except Exception as error:  # json and safetensors have many kinds of broken file
        raise LoRAError(f"the adapter in {folder} cannot be read ({error}): it needs adapter_config.json, an object, "
                        "and adapter_model.safetensors; PEFT can save an adapter_model.bin as such") from None
    more = [option for option in BEYOND if config.get(option)] + [f"{option}={config[option]!r}" for option, plain in (
        ("peft_type", ["LORA"]), ("bias", ["none"]), ("init_lora_weights", [True, False, "gaussian", "eva"]))
        if config.get(option, plain[0]) not in plain]
    if more or layers(model):
        raise LoRAError("the model has an adapter already; load it again" if not more else f"the adapter in {folder} "
                        f"is more than plain LoRA ({', '.join(more)}); merge it with PEFT and use the merged model")
    state = {key.removeprefix(PREFIX).replace(".default.", "."): weight for key, weight in state.items()}
    match = re.compile(targets if isinstance(targets, str) else rf"(.*\.)?({'|'.join(map(re.escape, targets or []))})")
    sizes = {name: module.weight.shape for name, module in model.named_modules()
             if isinstance(module, nn.Linear) and match.fullmatch(name)}
    shapes = {f"{name}.lora_A.weight": (rank, d_in) for name, (_, d_in) in sizes.items()}
    shapes |= {f"{name}.lora_B.weight": (d_out, rank) for name, (d_out, _) in sizes.items()}
    for key in {**shapes, **state} or ["any LoRA weight"]:
        has = tuple(state[key].shape) if key in state else "nothing"
        has = has if key not in state or state[key].isfinite().all() else "values that are not finite"
        if has != shapes.get(key):
            raise LoRAError(f"the adapter in {folder} does not fit the model: for {key} it has {has}, not "
                            f"{shapes.get(key, 'nothing')}; use the model it was trained on, or save it again, "
                            "alone and whole (size 0 is what ZeRO-3 leaves: gather the weights first)")
    wrap(model, dict.fromkeys(sizes, rank), alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    set_state(model, state)
