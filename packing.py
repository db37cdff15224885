"""Packed rows: examples laid end to end without padding, each seeing only itself, and a shared prefix where there is one.

Positions restart in each sequence and an explicit mask keeps them apart, so that the rows give what one example at a
time gives, in far fewer and larger matrix products.
"""
from dataclasses import dataclass

import torch

ROW_TOKENS = 256     # rows are at most this long, unless a sequence is longer
WEIGHT_COST = 1000   # a token costs as much in the weights as in attention over about this many places
PREFIX_COST = 50     # and as much as 20 places of a prefix, whose keys and values are copied into every row


@dataclass(frozen=True)
class Sequence:
    """Input tokens of one example. The last `outputs` (G) of them are the output positions; `run` owns the tokens."""
    tokens: tuple
    outputs: int
    run: int = 0


@dataclass(frozen=True)
class Rows:
    """Sequences laid into B rows of T tokens.

    tokens, positions, owner (B, T); mask (B, 1, T, P + T), true where a token may look; rows, columns (N): the output
    positions of all sequences, in the order of `order`, the numbers of the sequences.
    """
    tokens: torch.Tensor
    positions: torch.Tensor
    owner: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    order: list


def lay_passes(sequences, max_tokens, prefix_length=0):
    """Sequence numbers in passes of about `max_tokens` tokens, each pass in rows that are filled well.

    Sequences of one run stay together, so that a pass multiplies with few adapters, and those of similar length, so
    that rows need little filling up.
    """
    order = sorted(range(len(sequences)), key=lambda number: (sequences[number].run, -len(sequences[number].tokens)))
    passes, used = [], max_tokens
    for number in order:
        if used + len(sequences[number].tokens) > max_tokens:
            passes.append([])
            used = 0
        passes[-1].append(number)
        used += len(sequences[number].tokens)
    return [lay_rows(numbers, [len(sequences[number].tokens) for number in numbers], prefix_length) for numbers in passes]


def lay_rows(numbers, lengths, prefix_length=0):
    """Rows of sequence numbers: first-fit decreasing, for the row length that costs least.

    A row costs its length in the weights, its square in attention, its unfilled end included, and a copy of the prefix.
    """
    def cost(rows):
        width = max(sum(length for length, _ in row) for row in rows)
        return len(rows) * (width * (WEIGHT_COST + width + prefix_length) + PREFIX_COST * prefix_length)

    pairs = sorted(zip(lengths, numbers), key=lambda pair: -pair[0])
    widths = range(pairs[0][0], max(ROW_TOKENS, pairs[0][0]) + 1, 4)
    best = min((first_fit(pairs, width) for width in widths), key=cost)
    return [[number for _, number in row] for row in best]


def first_fit(pairs, width):
    """(length, number) pairs, longest first -> rows of at most `width` tokens, each pair in the first row with room."""
    rows, room = [], []
    for pair in pairs:
        place = next((place for place, free in enumerate(room) if free >= pair[0]), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(width)
        rows[place].append(pair)
        room[place] -= pair[0]
    return rows


def pack(sequences, rows, prefix_length, device):
    """Lay sequences into rows (lists of their numbers), as `Rows`.

    Positions restart at the prefix's length in each sequence. What is left at a row's end is a segment of its own
    that nobody reads.
    """
    width = max(sum(len(sequences[number].tokens) for number in row) for row in rows)
    tokens, positions, owner, segment, at_rows, at_columns, order = [], [], [], [], [], [], []
    for place, row in enumerate(rows):
        ids, where, whose, which = [], [], [], []
        for number in row:
            sequence = sequences[number]
            length = len(sequence.tokens)
            ids += sequence.tokens
            where += range(prefix_length, prefix_length + length)
            whose += [sequence.run] * length
            which += [number] * length
            at_rows += [place] * sequence.outputs
            at_columns += range(len(ids) - sequence.outputs, len(ids))
            order.append(number)
        rest = width - len(ids)
        tokens.append(ids + [0] * rest)
        positions.append(where + [0] * rest)
        owner.append(whose + [whose[-1]] * rest)
        segment.append(which + [-1] * rest)
    segment = torch.tensor(segment, device=device)
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    mask = (segment[:, :, None] == segment[:, None, :]) & causal
    if prefix_length:
        mask = torch.cat([mask.new_ones(len(rows), width, prefix_length), mask], dim=-1)
    tensor = lambda values: torch.tensor(values, device=device)
    return Rows(tensor(tokens), tensor(positions), tensor(owner), mask[:, None], tensor(at_rows), tensor(at_columns),
                order)


def spans(packed, sequences):
    """[(sequence number, slice of the output positions)] of packed rows."""
    placed, start = [], 0
    for number in packed.order:
        placed.append((number, slice(start, start + sequences[number].outputs)))
        start += sequences[number].outputs
    return placed
