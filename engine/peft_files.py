"""Adapters on disk, in PEFT's layout: adapter_config.json and adapter_model.safetensors.

`save` writes them so that PEFT loads them. `load` reads ours and PEFT's if they are plain LoRA, and
refuses what is more than that, is not whole, or belongs to another model.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lora
from engine import running
from support.cli import UserError

PREFIX = "base_model.model."  # PEFT's name for the model inside its files
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
LARGEST_ALPHA = 1e30
PROBE = list(range(3, 11))  # a few tokens that every vocabulary has

# What plain LoRA has in PEFT's configuration. PiSSA, OLoRA, CorDA and LoftQ change the base model's
# weights, so their A and B belong to a base that is not at hand.
PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
# Settings with which only some of the target modules have an adapter.
NARROWING = ("layers_to_transform", "layers_pattern", "exclude_modules")
# What is more than LoRA, unless it is null, false or empty.
EXTRAS = (
    "use_dora",  # magnitudes beside the directions
    "lora_bias",  # a bias on B
    "modules_to_save",  # layers trained whole
    "rank_pattern",  # ranks that differ by layer
    "alpha_pattern",  # scales that differ by layer
    "layer_replication",  # layers used several times
    "target_parameters",  # parameters outside of linear layers
    "trainable_token_indices",  # rows of the embeddings
    "alora_invocation_tokens",  # an adapter that begins behind certain tokens
    "use_qalora",  # inputs pooled in groups
    "use_bdlora",  # block-diagonal matrices
    "kasa_config",  # singular values between A and B
    "monteclora_config",  # sampled adapters
    "arrow_config",  # several adapters, chosen for each token
)


# ---- saving --------------------------------------------------------------------------------------


def save(model: nn.Module, folder: str | Path) -> None:
    """Write the adapter into the existing `folder`."""
    layers = lora.layers(model)
    first = next(iter(layers.values()))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name_or_path,
        "r": first.rank,
        "lora_alpha": first.scale * first.rank,
        "target_modules": target_names(model),
    }
    Path(folder, CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {}
    for name, weight in lora.state(model).items():
        state[PREFIX + name] = weight.cpu().contiguous()
    save_file(state, Path(folder, WEIGHTS), metadata={"format": "pt"})


def target_names(model: nn.Module) -> list[str]:
    """The last parts of the wrapped modules' names, or the whole names where the last parts also
    fit other layers: those of an image encoder, for example.
    """
    wrapped = list(lora.layers(model))
    short = {name.rpartition(".")[2] for name in wrapped}
    inside = tuple(f"{name}." for name in wrapped)
    for name, module in model.named_modules():
        is_other = name not in wrapped and not name.startswith(inside)
        if isinstance(module, nn.Linear) and is_other and name.rpartition(".")[2] in short:
            return sorted(wrapped)
    return sorted(short)


# ---- loading -------------------------------------------------------------------------------------


def load(model: nn.Module, folder: str | Path) -> None:
    """Put an adapter, ours or PEFT's, on a model that has none.

    Raises UserError if its files cannot be read, it is more than LoRA, is not whole, does not fit
    the model, or makes outputs that are not finite. The model is then as it was.
    """
    if lora.layers(model):
        raise UserError("the model has an adapter already; load it again")
    config = read_config(folder)
    state = read_weights(folder)
    modules = targeted_modules(model, config, state)
    drop_base_weights(state, modules)
    check_fit(folder, config, state, modules)
    check_sums(folder, config, state, modules)
    model.requires_grad_(False)
    for name, module in modules.items():
        model.set_submodule(name, lora.LoRALinear(module, config.rank, config.scale))
    lora.load_state(model, state)
    if not running.is_finite(model, PROBE):
        for name, module in modules.items():
            model.set_submodule(name, module)
        raise diverged(folder, "the outputs of the model with it are not finite")


@dataclass(frozen=True)
class AdapterConfig:
    """What plain LoRA needs of PEFT's configuration."""

    rank: int
    scale: float  # alpha / r, or alpha / sqrt(r) with use_rslora
    targets: list[str] | str  # names of modules or their last parts, or a pattern of whole names
    only_some: bool  # of the modules that `targets` names have an adapter


def read_config(folder: str | Path) -> AdapterConfig:
    """Read adapter_config.json. Raises UserError for all that is not the settings of plain LoRA."""
    try:
        config = json.loads(Path(folder, CONFIG).read_text(encoding="utf-8"))
        targets = config["target_modules"]
        rank = config.get("r", 8)  # PEFT's defaults
        alpha = config.get("lora_alpha", 8)
    except Exception as error:  # json has many kinds of broken file
        raise cannot_read(folder, error) from None
    refuse_more_than_lora(folder, config)
    if not are_targets(targets):
        raise wrong_value(folder, "target_modules", targets, "a list of names or a pattern")
    if type(rank) is not int or rank < 1:
        raise wrong_value(folder, "r", rank, "a whole number above 0")
    if type(alpha) not in (int, float) or not abs(alpha) <= LARGEST_ALPHA:  # NaN is not, either
        raise wrong_value(folder, "lora_alpha", alpha, "a number of a usual size")
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    only_some = any(config.get(key) not in (None, [], "") for key in NARROWING)
    return AdapterConfig(rank, alpha / divisor, targets, only_some)


def refuse_more_than_lora(folder: str | Path, config: dict) -> None:
    """Raise UserError if a configuration has settings beyond plain LoRA."""
    more = []
    for key, plain_values in PLAIN.items():
        value = config.get(key, plain_values[0])
        if value not in plain_values:
            more.append(f"{key}={value}")
    for key in EXTRAS:
        value = config.get(key)
        if value not in (None, False, [], {}):
            more.append(f"{key}={value}")
    if more:
        raise UserError(
            f"the adapter in {folder} is more than LoRA ({', '.join(more)}); merge it with PEFT"
        )


def are_targets(value: object) -> bool:
    """Whether a value is a list of names or a valid pattern."""
    if isinstance(value, list):
        return all(isinstance(name, str) for name in value)
    try:
        re.compile(value)
    except (re.error, TypeError):
        return False
    return True


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of adapter_model.safetensors in float32, by the names of `lora.weights`."""
    try:
        tensors = load_file(Path(folder, WEIGHTS))
        state = {}
        for key, tensor in tensors.items():
            if not tensor.is_floating_point():
                raise TypeError(f"{key} is of type {tensor.dtype}")
            name = key.removeprefix(PREFIX).replace(".default.", ".")  # an adapter's name in PEFT
            state[name] = tensor.float()  # also of 8-bit floats, which know no isfinite
    except Exception as error:  # safetensors has many kinds of broken file
        raise cannot_read(folder, error) from None
    return state


def targeted_modules(
    model: nn.Module, config: AdapterConfig, state: dict[str, Tensor]
) -> dict[str, nn.Linear]:
    """The linear layers that get an adapter, by name.

    PEFT can restrict its targets to some layers. The weights in the file tell which.
    """
    modules = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or not is_targeted(name, config.targets):
            continue
        if not config.only_some or f"{name}.lora_A.weight" in state:
            modules[name] = module
    return modules


def is_targeted(name: str, targets: list[str] | str) -> bool:
    """Whether PEFT's `target_modules` name a module."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def drop_base_weights(state: dict[str, Tensor], modules: dict[str, nn.Linear]) -> None:
    """Take out the model's own weight, which PEFT saves beside the adapter of a head."""
    for name, module in modules.items():
        key = f"{name}.base_layer.weight"
        weight = module.weight
        if key in state and torch.equal(state[key].to(weight), weight):
            del state[key]


def check_fit(
    folder: str | Path,
    config: AdapterConfig,
    state: dict[str, Tensor],
    modules: dict[str, nn.Linear],
) -> None:
    """Raise UserError unless the file has a finite A and B of the right shape for each module, and
    nothing else.
    """
    shapes = {}
    for name, module in modules.items():
        shapes[f"{name}.lora_A.weight"] = (config.rank, module.in_features)
        shapes[f"{name}.lora_B.weight"] = (module.out_features, config.rank)
    for key in {**shapes, **state} or ["any LoRA weight"]:
        in_file = tuple(state[key].shape) if key in state else "missing"
        if in_file != shapes.get(key) or not state[key].isfinite().all():
            raise UserError(
                f"the adapter in {folder} does not fit: {key} is {in_file} or not finite, instead "
                f"of {shapes.get(key)}; use its own model, or save it again, whole and alone "
                "(under ZeRO-3, gathered)"
            )


@torch.no_grad()
def check_sums(
    folder: str | Path,
    config: AdapterConfig,
    state: dict[str, Tensor],
    modules: dict[str, nn.Linear],
) -> None:
    """Raise UserError if W + scale B A, or its square, is not finite in float32 for some module.

    The norms behind a module square what it puts out. An infinite square turns all into zeros.
    """
    for name, module in modules.items():
        A = state[f"{name}.lora_A.weight"].to(module.weight.device)
        B = state[f"{name}.lora_B.weight"].to(module.weight.device)
        merged = module.weight.float() + config.scale * (B @ A)
        if not merged.square().sum().isfinite():
            raise diverged(folder, f"the weight of {name} with it is not finite in float32")


# ---- errors --------------------------------------------------------------------------------------


def cannot_read(folder: str | Path, error: Exception) -> UserError:
    return UserError(
        f"the adapter in {folder} cannot be read ({error!r}): give adapter_config.json, an object, "
        "and adapter_model.safetensors (PEFT can save a .bin as such)"
    )


def wrong_value(folder: str | Path, key: str, value: object, expected: str) -> UserError:
    return UserError(
        f"the adapter in {folder} cannot be used: {key} is {value!r} in adapter_config.json "
        f"instead of {expected}; correct it, or save the adapter again with PEFT"
    )


def diverged(folder: str | Path, problem: str) -> UserError:
    return UserError(
        f"the adapter in {folder} cannot be used: {problem}; it has diverged: train it again"
    )
