"""LoRA by hand: W x + (alpha / r) B A x on the query, key and output projections of every layer (Hu et al., 2021).

The four verbs are `add`, `reset`, `disable` and `merge`, with `save` and `load` in PEFT's file layout.

One model can carry the adapters of many runs at once. Every wrapped projection then holds one A and one B per run,
and `route` says which run each token of the next forward pass belongs to. The products of all runs are one wide
product with a mask in the middle,

    delta = B_all ((A_all x) * own),    A_all (R r, d_in),  B_all (d_out, R r),  own 1 in the token's own r columns,

so any token may sit in any row, no loop runs over the runs, and a single run is the case R = 1 of the same lines.
"""
import json
import math
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

TARGETS = ("q", "k", "o")  # the paper trains W_Q, W_K and W_O
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")  # what may be trained
PREFIX = "base_model.model."  # PEFT's name for the wrapped model inside its files


class LoRAError(ValueError):
    """An adapter and a model that do not fit, in one sentence."""


class Routing:
    """Whose adapter acts on which token; shared by all wrapped projections of one model."""

    def __init__(self, runs):
        self.total = runs
        self.enabled = True
        self.runs = [0]     # the runs that take part in the next forward pass
        self.own = None     # (..., len(runs) * r) mask, or None where one run owns every token


class LoRALinear(nn.Module):
    """A frozen linear layer W (d_out, d_in) plus, for each run, A (r, d_in) and B (d_out, r) in float32."""

    def __init__(self, base, rank, scale, routing):
        super().__init__()
        self.base, self.rank, self.scale, self.routing = base, rank, scale, routing
        new = {"device": base.weight.device, "dtype": torch.float32}
        self.A = nn.ParameterList(nn.Parameter(torch.empty(rank, base.in_features, **new))
                                  for _ in range(routing.total))
        self.B = nn.ParameterList(nn.Parameter(torch.empty(base.out_features, rank, **new))
                                  for _ in range(routing.total))

    def forward(self, x):
        """x (..., d_in) -> W x + (alpha / r) B A x (..., d_out), in the dtype of W x; sums are made in float32."""
        out = self.base(x)
        if not self.routing.enabled:
            return out
        A_all = joined(self.A, self.routing.runs, dim=0)      # (R r, d_in)
        B_all = joined(self.B, self.routing.runs, dim=1)      # (d_out, R r)
        inner = F.linear(x.to(A_all.dtype), A_all)            # (..., R r)
        if self.routing.own is not None:
            inner = inner * self.routing.own
        # One product that adds as it goes: with r = 8 a separate sum would cost as much as the product.
        total = torch.addmm(out.flatten(0, -2).to(inner.dtype), inner.flatten(0, -2), B_all.T, alpha=self.scale)
        return total.view_as(out).to(out.dtype)


def joined(weights, runs, dim):
    """The weights of some runs side by side; those of a single run as they are, without a copy."""
    return weights[runs[0]] if len(runs) == 1 else torch.cat([weights[run] for run in runs], dim)


def layers(model):
    """The wrapped projections of `model`: {module name: LoRALinear}, in the order of the model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def add(model, rank=8, alpha=8, targets=TARGETS, runs=1, seed=0):
    """Freeze `model` and wrap the target projections of every layer, in place; B = 0, so nothing changes yet.

    `targets` are short names out of `PROJECTIONS`. `runs` adapters are made, numbered from 0; run 0 acts on every
    token until `route` says otherwise. Raises LoRAError when the model does not have the projections.
    """
    check_plain(model)
    names = {f"{target}_proj" for target in targets}
    chosen = [name for name, module in model.named_modules()
              if isinstance(module, nn.Linear) and name.rpartition(".")[2] in names]
    missing = names - {name.rpartition(".")[2] for name in chosen}
    if missing:
        raise LoRAError(f"the model {model_name(model)} has no {', '.join(sorted(missing))} layers to put LoRA on; "
                        "use a model of the Llama or Qwen kind")
    wrap(model, {name: rank for name in chosen}, alpha / rank, runs)
    for run in range(runs):
        reset(model, run, seed)


def check_plain(model):
    if layers(model):
        raise LoRAError("the model already carries an adapter; merge it or load the model anew")


def model_name(model):
    return getattr(model.config, "_name_or_path", "") or type(model).__name__


def wrap(model, ranks, scale, runs):
    """Freeze `model` and put an empty LoRALinear over each named module; `ranks` is {module name: r}."""
    model.requires_grad_(False)
    routing = Routing(runs)
    for name, rank in ranks.items():
        parent = model.get_submodule(name.rpartition(".")[0])
        base = model.get_submodule(name)
        setattr(parent, name.rpartition(".")[2], LoRALinear(base, rank, scale, routing))


def reset(model, run=0, seed=0):
    """Start run `run` anew: A Kaiming-uniform as in nn.Linear (a = sqrt(5)), B zero; the same seed, the same A."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers(model).values():
            bound = math.sqrt(6 / (1 + 5)) / math.sqrt(layer.base.in_features)
            layer.A[run].copy_(torch.empty(layer.A[run].shape).uniform_(-bound, bound, generator=generator))
            layer.B[run].zero_()


def parameters(model, run=0):
    """The A and B of run `run`, and nothing else, for its optimiser."""
    return [weight for layer in layers(model).values() for weight in (layer.A[run], layer.B[run])]


def get_state(model, run=0):
    """A real copy of the adapter of run `run`: {module name: (A, B)}, on the CPU."""
    return {name: (layer.A[run].detach().cpu().clone(), layer.B[run].detach().cpu().clone())
            for name, layer in layers(model).items()}


def set_state(model, state, run=0):
    """Put the adapter `state` (of `get_state` or `read`) into run `run`. Raises LoRAError if it does not fit."""
    wrapped = layers(model)
    if set(state) != set(wrapped):
        raise LoRAError(f"the adapter was made for other layers than those of {model_name(model)} with these targets")
    with torch.no_grad():
        for name, (A, B) in state.items():
            if (A.shape, B.shape) != (wrapped[name].A[run].shape, wrapped[name].B[run].shape):
                raise LoRAError(f"the adapter's {name} has A {tuple(A.shape)} and B {tuple(B.shape)}, but "
                                f"{model_name(model)} wants {tuple(wrapped[name].A[run].shape)} and "
                                f"{tuple(wrapped[name].B[run].shape)}: it belongs to another model or rank")
            wrapped[name].A[run].copy_(A)
            wrapped[name].B[run].copy_(B)


@contextmanager
def disable(model):
    """Inside the block the model is the base model: its projections leave A and B out, whatever happens."""
    routings = {layer.routing for layer in layers(model).values()}
    before = [(routing, routing.enabled) for routing in routings]
    try:
        for routing in routings:
            routing.enabled = False
        yield
    finally:
        for routing, enabled in before:
            routing.enabled = enabled


@contextmanager
def route(model, owner):
    """Inside the block each token uses the adapter of its own run.

    `owner` (B, T) holds the number of the run each token belongs to; (B, 1) gives whole rows to a run.
    """
    first = next(iter(layers(model).values()), None)
    if first is None:
        yield
        return
    routing, before = first.routing, (first.routing.runs, first.routing.own)
    runs, column = torch.unique(owner, return_inverse=True)                     # column: (B, T)
    own = None
    if len(runs) > 1:
        own = F.one_hot(column, len(runs)).repeat_interleave(first.rank, dim=-1).float()  # (B, T, R r)
    try:
        routing.runs, routing.own = runs.tolist(), own
        yield
    finally:
        routing.runs, routing.own = before


def merge(model, run=0):
    """Fold the adapter of run `run` into the weights, W + (alpha / r) B A, and return the plain model.

    The sum is made in float32 and rounded once to the model's dtype, so a merged bfloat16 model differs from model and
    adapter as much as bfloat16 differs from float32. The adapters are gone afterwards.
    Raises LoRAError, with the model unchanged, if a merged weight is not finite.
    """
    merged = {}
    with torch.no_grad():
        for name, layer in layers(model).items():
            weight = layer.base.weight.float() + layer.scale * (layer.B[run] @ layer.A[run])
            merged[name] = weight.to(layer.base.weight.dtype)
            if not torch.isfinite(merged[name]).all():
                raise LoRAError(f"the merged weight of {name} is not finite; the adapter has diverged")
        for name, layer in layers(model).items():
            layer.base.weight.copy_(merged[name])
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.base)
    return model


def save(model, folder, run=0, base_model=None):
    """Write the adapter of run `run` into the existing `folder` in PEFT's layout, which PEFT, vLLM and others load.

    Raises LoRAError, or OSError, when it cannot be written.
    """
    wrapped = layers(model)
    first = next(iter(wrapped.values()))
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_model or model_name(model),
        "r": first.rank, "lora_alpha": first.scale * first.rank, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
        "target_modules": sorted({name.rpartition(".")[2] for name in wrapped}),
    }
    weights = {f"{PREFIX}{name}.lora_{letter}.weight": weight.contiguous()
               for name, pair in get_state(model, run).items() for letter, weight in zip("AB", pair)}
    Path(folder, "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    try:
        save_file(weights, Path(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
    except SafetensorError as error:
        raise LoRAError(f"the adapter cannot be written to {folder} ({error}); make room and try again") from None


def read(folder):
    """Read an adapter that we or PEFT wrote: ({module name: (A, B)}, scale). Raises LoRAError if it is no plain LoRA."""
    folder = Path(folder)
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "adapter_model.safetensors")
    except FileNotFoundError as error:
        raise LoRAError(f"{folder} is not an adapter folder: {Path(error.filename or '').name or error} is missing") from None
    except Exception as error:  # json and safetensors each have their own kinds of broken file
        raise LoRAError(f"the adapter in {folder} cannot be read ({error})") from None
    extras = [key for key in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern") if config.get(key)]
    if config.get("peft_type") != "LORA" or extras or config.get("bias", "none") != "none":
        raise LoRAError(f"the adapter in {folder} is not plain LoRA ({', '.join(extras) or config.get('peft_type')})")
    pairs = {}
    for key, weight in weights.items():
        name, _, kind = key.removeprefix(PREFIX).rpartition(".lora_")
        pairs.setdefault(name, {})[kind] = weight
    for name, pair in pairs.items():
        if set(pair) != {"A.weight", "B.weight"}:
            raise LoRAError(f"the adapter in {folder} has other weights for {name or 'a layer'} than LoRA's A and B: "
                            f"{', '.join(sorted(pair))}")
    state = {name: (pair["A.weight"], pair["B.weight"]) for name, pair in pairs.items()}
    return state, config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])


def load(model, folder):
    """Put the adapter in `folder` onto a plain model, as run 0; the model is frozen. Raises LoRAError if it does not fit."""
    check_plain(model)
    state, scale = read(folder)
    for name, (A, B) in state.items():
        module = dict(model.named_modules()).get(name)
        if not isinstance(module, nn.Linear) or (module.in_features, module.out_features) != (A.shape[1], B.shape[0]):
            raise LoRAError(f"the adapter in {folder} does not fit {model_name(model)}: {name} is not a linear layer "
                            f"from {A.shape[1]} to {B.shape[0]} there; load it on the model it was trained on")
    wrap(model, {name: A.shape[0] for name, (A, _) in state.items()}, scale, runs=1)
    set_state(model, {name: (A.float(), B.float()) for name, (A, B) in state.items()})
