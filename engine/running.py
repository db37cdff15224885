"""How a model is run: rows padded on the right, a shared prefix encoded once, the head at chosen
positions only, greedy decoding.

Shapes: B batch, T tokens, N positions of a batch, L layers, d hidden size, V vocabulary.
"""

import copy
import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from engine import cpu
from support.cli import UserError, is_out_of_memory

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None

# ---- one pass ------------------------------------------------------------------------------------


def pad_right(rows: list[list[int]], device: torch.device) -> Tensor:
    """Rows of token ids as one tensor (B, T). A causal model never looks to the right, so no mask
    is needed.
    """
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True).to(device)


def logits_at(model, inputs: list[list[int]], rows, columns, prefix=None) -> Tensor:
    """Run rows of token ids in one batch; the logits (N, V) at N positions (row, column).

    The head's input is narrowed to these positions by a hook, so whatever the model does after its
    head (soft caps, scalings) is done as always, and the other positions' logits are never
    computed. `prefix` is a cache of tokens that stand before every row.
    """

    def narrow(module, inputs):
        return (inputs[0][rows, columns][None],)  # (1, N, d)

    tokens = pad_right(inputs, model.device)  # (B, T)
    cache = None if prefix is None else for_rows(prefix, len(inputs))
    handle = model.get_output_embeddings().register_forward_pre_hook(narrow)
    try:
        with cpu.skip_padding([len(row) for row in inputs], model.device):
            output = model(input_ids=tokens, past_key_values=cache, use_cache=cache is not None)
    finally:
        handle.remove()
    return output.logits[0]


@contextmanager
def edit_attention(
    model, rows, columns, edit: Callable[[int, Tensor], Tensor] | None
) -> Iterator[None]:
    """Inside the block, passes go on with `edit(layer, outputs)` in place of what each layer's
    self-attention block puts out at N positions, `outputs` (N, d). None changes nothing.

    In generation the position is the last one of every pass: rows `slice(None)`, column -1.
    """

    def hook(layer, module, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output  # (B, T, d)
        hidden = hidden.clone()
        hidden[rows, columns] = edit(layer, hidden[rows, columns])
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handles = []
    if edit is not None:
        for i, layer in enumerate(model.get_decoder().layers):
            handle = layer.self_attn.register_forward_hook(functools.partial(hook, i))
            handles.append(handle)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---- a prefix that many prompts share ------------------------------------------------------------


def share_prefix(model, prompts: list[list[int]]) -> tuple[DynamicCache | None, list[list[int]]]:
    """The start that all prompts share, encoded once, and the rest of each prompt.

    At least one token is left of each prompt. The cache is None where they share nothing.
    """
    shortest = min(len(prompt) for prompt in prompts)
    shared = os.path.commonprefix(prompts)[: shortest - 1]
    if not shared:
        return None, prompts
    cache = DynamicCache(config=model.config)
    tokens = torch.tensor([shared], device=model.device)
    model.get_decoder()(input_ids=tokens, past_key_values=cache, use_cache=True)
    return cache, [prompt[len(shared) :] for prompt in prompts]


def for_rows(prefix: DynamicCache, count: int) -> DynamicCache:
    """The prefix, copied, as the start of `count` rows, which share it until a layer adds to it."""
    cache = copy.deepcopy(prefix)
    for layer in cache.layers:
        layer.keys = layer.keys.expand(count, -1, -1, -1)
        layer.values = layer.values.expand(count, -1, -1, -1)
    return cache


# ---- greedy decoding -----------------------------------------------------------------------------


@torch.no_grad()
def generate(
    model, tokenizer, prompts, max_tokens: int, prefix=None, stop: str | None = None
) -> list[list[int]]:
    """Greedy responses: for each prompt at most `max_tokens` token ids, the end token included.

    A response also ends where its text has `stop` in it. `prefix` is a cache of tokens that stand
    before every prompt. Raises UserError if the tokenizer has no end token.
    """
    ends = end_tokens(model, tokenizer)
    length = max(len(prompt) for prompt in prompts)
    if prefix is not None:
        length += prefix.get_seq_length()

    def ended(response: list[int]) -> bool:
        if response[-1] in ends or len(response) == max_tokens:
            return True
        if stop is None:
            return False
        # Its last tokens are enough, as it has been read after each token before.
        text = tokenizer.decode(response[-8:]).replace("\r\n", "\n")
        return stop in text.lstrip()

    # Prompts of a batch are padded on the left, and pads would take up a sliding window's places.
    if len(prompts) > 1 and length + max_tokens > shortest_window(model):
        return [decode(model, [prompt], prefix, ended)[0] for prompt in prompts]
    return decode(model, prompts, prefix, ended)


def decode(model, prompts, prefix, ended: Callable[[list[int]], bool]) -> list[list[int]]:
    """Add the likeliest token to each row until `ended(response)` is true of all responses."""
    B = len(prompts)
    device = model.device
    width = max(len(prompt) for prompt in prompts)
    rows = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    tokens = torch.tensor(rows, device=device)  # (B, T)
    pads = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
    mask = (torch.arange(width, device=device) >= pads[:, None]).long()
    if prefix is None:
        cache = DynamicCache(config=model.config)
    else:
        cache = for_rows(prefix, B)
        before = torch.ones(B, prefix.get_seq_length(), dtype=torch.long, device=device)
        mask = torch.cat([before, mask], dim=1)
    responses: list[list[int]] = [[] for _ in prompts]
    going = set(range(B))
    while going:
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        output = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens = output.logits[:, -1].argmax(-1, keepdim=True)  # (B, 1)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        for b, token in enumerate(tokens[:, 0].tolist()):
            if b in going:
                responses[b].append(token)
                if ended(responses[b]):
                    going.remove(b)
    return responses


def end_tokens(model, tokenizer) -> set[int]:
    """The tokens that end a response: the tokenizer's end token and those of the model's generation
    settings. Raises UserError if the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "this tokenizer has no end-of-sequence token, which free-text answers need; use "
            "another model or a task with labels"
        )
    ends = {tokenizer.eos_token_id}
    listed = model.generation_config.eos_token_id if model.generation_config else None
    if isinstance(listed, int):
        ends.add(listed)
    elif listed is not None:
        ends.update(listed)
    return ends


# ---- limits --------------------------------------------------------------------------------------


def check_length(model, prompt: list[int], max_tokens: int) -> None:
    """Raise UserError if a prompt and its response do not fit into the context: nothing is cut."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = len(prompt) + max_tokens
    if limit is not None and length > limit:
        raise UserError(
            f"a prompt has {length} tokens with its response, more than the model's context of "
            f"{limit}; use a smaller --n or --max-tokens, or shorter texts"
        )


def shortest_window(model) -> float:
    """The tokens that the narrowest sliding attention sees; infinity where none slides."""
    windows = []
    for layer in DynamicCache(config=model.config).layers:
        if isinstance(layer, DynamicSlidingWindowLayer):
            windows.append(layer.sliding_window)
    return min(windows, default=float("inf"))


@torch.no_grad()
def check_model(model, tokens: list[int]) -> None:
    """Raise UserError if a model cannot be run as this file runs models, or if its outputs on a
    short text, `tokens`, are not finite.
    """
    name = model.name_or_path or type(model).__name__
    advice = "use a Llama, Qwen or Gemma model"
    if "longrope" in rope_types(model.config.get_text_config()):
        raise UserError(
            f"the rotary embeddings of {name} depend on the longest row of a batch (longrope), so "
            f"figures would depend on the batch; {advice}"
        )
    try:
        output = model(input_ids=torch.tensor([tokens], device=model.device), use_cache=True)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error):
            raise
        raise UserError(f"{name} does not run on a short text ({error!r}); {advice}") from None
    check_cache(name, getattr(output, "past_key_values", None), advice)
    layers = getattr(model.get_decoder(), "layers", [None])
    if not all(hasattr(layer, "self_attn") for layer in layers):
        raise UserError(
            f"{name} has no self_attn in every layer, whose outputs are compared here; {advice}"
        )
    if shortest_window(model) < 2:
        raise UserError(f"{name} has a sliding window of 1, behind which nothing is seen; {advice}")
    if not output.logits.isfinite().all():
        dtype = str(model.dtype).removeprefix("torch.")
        raise UserError(
            f"the outputs of {name} on a short text are not finite in {dtype}: its weights are "
            "damaged or too large for that type; fetch them again or convert them to bfloat16"
        )


def check_cache(name: str, cache, advice: str) -> None:
    """Raise UserError unless the cache that a pass has left holds keys and values of plain or
    sliding attention, which is what prefixes are made of.

    A state that is carried from token to token cannot be shared between rows or padded so, and a
    model with a cache class of its own does not take ours.
    """
    if cache is None:
        described = "it has none"
    elif type(cache) is not DynamicCache:
        described = type(cache).__name__
    else:
        kinds = {type(layer) for layer in cache.layers} - {DynamicLayer, DynamicSlidingWindowLayer}
        described = ", ".join(sorted(kind.__name__ for kind in kinds))
    if described:
        raise UserError(
            f"the cache of {name} is not one of plain or sliding attention ({described}), so "
            f"prompts could not share their demos; {advice}"
        )


@torch.no_grad()
def is_finite(model, tokens: list[int]) -> bool:
    """Whether the model's outputs on a few tokens are finite."""
    output = model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False)
    return bool(output.logits.isfinite().all())


def rope_types(config) -> set[str]:
    """The kinds of rotary embeddings in a configuration, which may have one for each layer type."""
    parameters = getattr(config, "rope_parameters", None) or {}
    parts = [parameters, *parameters.values()]
    return {part["rope_type"] for part in parts if isinstance(part, dict) and "rope_type" in part}


def peak_memory(device: torch.device) -> int:
    """The most memory used so far in bytes: by tensors on a GPU, else by this process (0 where the
    system does not tell).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
