"""Examples and few-shot sets: how rows become prompts and labels, and which examples a run sees.

An example is a query X, which ends where the answer starts, and the response Y that follows it letter by
letter. Where rows come from, your own included, is in sources/tasks.py.
"""
import hashlib
import json
import math
import random
from dataclasses import dataclass, replace

from sources import tasks
from sources.offline import UserError, say

BLANK_LINE = "\n\n"  # between demos, and between the demos and the query
REMAP_WORDS = (  # arbitrary names for labels; those of one token are used, so that any tokenizer finds enough
    "apple river stone cloud table horse paper green music winter garden silver bridge orange window "
    "engine forest mountain copper kitchen summer tiger purple island bottle castle pencil rocket "
    "valley market yellow basket candle desert eagle flower guitar hammer jacket lemon mirror needle "
    "ocean parrot rabbit saddle turtle violin wagon anchor butter carpet dragon feather glass honey "
    "iron jungle knight ladder metal north olive piano queen"
).split()


@dataclass(frozen=True)
class Example:
    """A query X and its response Y; `label` is the number of the label, None for free text."""
    query: str
    response: str
    label: int | None = None


@dataclass(frozen=True)
class Data:
    """A task's examples, `pool` to draw few-shot sets from and `test` held out, and how its labels look."""
    task: tasks.Task
    pool: list
    test: list
    source: str
    prompt: str
    label_style: str | None   # digits, words or remap; None for free text
    label_texts: list
    label_tokens: list        # the first token of each label behind a query, in the order of the labels
    max_tokens: int           # G at most: 1 for label tasks


def load(name, tokenizer, args, plain=False, style=None, usual=None):
    """Read the task `name` and word it, with `args.test` test queries of it.

    `args` are the command line's (data_dir, seed, test, max_tokens). `style` (digits, words, remap) is how
    labels are written, by default the task's own way, or else the `usual` one. Without a hub a task with a
    stand-in becomes it, with a warning. Raises UserError for whatever is wrong.
    """
    task = tasks.find_task(name)
    try:
        task, items, source = tasks.read_task(task, args.data_dir)
    except tasks.NoHub:
        if name not in tasks.STAND_INS:
            raise
        stand_in, items, source = tasks.read_task(tasks.TASKS[tasks.STAND_INS[name]])
        say(f"warning: the hub cannot be reached, so {stand_in.name} ({source}) stands in for {name}: rated "
            "movie review snippets, other texts than SST-2's; results say so in `source`")
        task, source = replace(stand_in, name=name), f"stand-in {stand_in.name}, {source}"
    style = (style or task.label_style or usual or "digits") if task.labels else None
    texts = label_texts(task, style, args.seed, tokenizer) if task.labels else []
    # Digits and arbitrary names are asked for as the paper does.
    prompt = task.plain_prompt if plain and task.plain_prompt and style == "words" else task.prompt
    examples = {part: [Example(prompt.format(text=item.text),
                               texts[item.label] if texts else f" {item.answer}", item.label)
                       for item in items[part]] for part in items}
    as_written = task.family == "own"  # your own queries may differ in case alone
    test = drop_repeats(examples["test"], [], as_written)
    pool = drop_repeats(examples["train"], test, as_written)
    left_out = sum(map(len, examples.values())) - len(pool) - len(test)
    if left_out and as_written:
        say(f"{task.name}: {left_out} rows repeat a query and are left out")
    if not pool or not test:
        raise UserError(f"{name} has {len(pool)} training and {len(test)} test examples; it needs both")
    if args.test < len(test):
        test = random.Random(f"test-{args.seed}").sample(test, args.test)
    tokens = [(new_tokens(tokenizer, pool[0].query, text) or [None])[0] for text in texts]
    for i, token in enumerate(tokens):
        if token in tokens[:i] or token is None:
            others = " or ".join(other for other in ("digits", "words", "remap") if other != style)
            raise UserError(f"the labels {texts[tokens.index(token)]!r} and {texts[i]!r} of {name} start "
                            "with the same token under this model's tokenizer and cannot be told apart; "
                            f"use --labels {others}")
    return Data(task, pool, test, source, prompt, style, texts, tokens,
                1 if texts else args.max_tokens or task.max_tokens)


def drop_repeats(examples, others, as_written):
    """Examples whose query is not in `others` nor repeated; case and spaces count only if `as_written`."""
    kept, seen = [], set()
    for i, example in enumerate([*others, *examples]):
        key = example.query if as_written else " ".join(example.query.lower().split())
        if key not in seen and i >= len(others):
            kept.append(example)
        seen.add(key)
    return kept


def settings(data, few_shot):
    """What a results row tells of the training data, to run it again and to tell it from others."""
    return {"dataset": data.task.name, "source": data.source, "pool_data": digest(data.pool),
            "prompt": data.prompt, "labels": data.label_style, "max_tokens": data.max_tokens,
            "n": len(few_shot.train), "set": few_shot.number, "seed": few_shot.seed,
            "train_data": digest(few_shot.train), "dev_data": digest(few_shot.dev)}


def held_out(data):
    """What a results row tells of the test queries."""
    return {"eval_dataset": data.task.name, "eval_source": data.source, "test": len(data.test),
            "test_data": digest(data.test)}


def digest(examples):
    """A short sha256 of the texts of some examples, to tell in a results row which data it saw."""
    texts = [[example.query, example.response] for example in examples]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


# ---- labels and tokens -------------------------------------------------------------------------------------


def label_texts(task, style, seed, tokenizer):
    """What follows the query for each label: `0`, ` negative`, or an arbitrary word drawn by seed.

    Digits come without a space, as in the paper's `Label:0`, words with one, as in running text; labels that
    are numbers themselves stay those numbers. The words of `remap` are those of one token; fewer labels get
    the first words of more labels, so that tasks of one family share them. UserError: there are too few.
    """
    if style == "words":
        return [f" {label}" for label in task.labels]
    if style == "digits":
        numbers = [label for label in task.labels if tasks.is_number(label)]
        if numbers and len(numbers) < len(task.labels):
            raise UserError(f"with --labels digits the label {numbers[0]} of {task.name} would become "
                            "another number; use --labels words or remap")
        return numbers or [str(i) for i in range(len(task.labels))]
    words = [f" {word}" for word in REMAP_WORDS if len(new_tokens(tokenizer, "Label:", f" {word}")) == 1]
    if len(words) < len(task.labels):
        raise UserError("this model's tokenizer knows too few of the words for --labels remap as one token; "
                        "use --labels digits or words")
    return random.Random(f"remap-{seed}").sample(words, len(words))[:len(task.labels)]


def prompt_tokens(tokenizer, demos, query):
    """The tokens of the demos and the query, joined by blank lines; with no demos, of the query alone.

    With the beginning-of-sequence token where the tokenizer adds one, never with an end.
    """
    text = BLANK_LINE.join([*(demo.query + demo.response for demo in demos), query])
    ids = tokenizer(text).input_ids
    ended = ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token)
    return ids[:-1] if ended else ids


def new_tokens(tokenizer, query, response):
    """The tokens that a response adds behind its query; alone, some tokenizers put a `▁` first."""
    before, both = (prompt_tokens(tokenizer, [], text) for text in (query, query + response))
    if both[:len(before)] == before:
        return both[len(before):]
    return tokenizer(response, add_special_tokens=False).input_ids


# ---- few-shot sets -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FewShotSet:
    """n training examples and n // 2 dev examples; `number` tells the random draws apart.

    `demos` is what ICL shows of the training examples: themselves, unless an experiment replaces them.
    """
    train: list
    dev: list
    demos: list
    number: int
    seed: int


def few_shot_set(pool, n, number=0, seed=0, balanced=False):
    """Draw few-shot set `number` from the pool, the same for the same seed; n = 2 is the start of n = 4.

    Random draws as in the paper, or `balanced`: the labels alternate, so their counts differ by one at most.
    Training examples come from the front of a random order, dev examples from its back, so they never meet.
    Raises UserError if n is below 2 or the pool is too small.
    """
    if n < 2:
        raise UserError(f"n must be at least 2, not {n}: each example needs another one as its demo")
    rng, groups = random.Random(f"few-shot-{seed}-{number}"), {}
    for example in pool:
        groups.setdefault(example.label if balanced else None, []).append(example)
    groups = [groups[label] for label in sorted(groups, key=lambda label: -1 if label is None else label)]
    rng.shuffle(groups)
    for group in groups:
        rng.shuffle(group)
    if min(map(len, groups)) < math.ceil(n / len(groups)) + math.ceil(n // 2 / len(groups)):
        raise UserError(f"n = {n} needs {n} training and {n // 2} dev examples, more than the pool of "
                        f"{len(pool)} has{' of some label' if balanced else ''}; use a smaller --n")
    train = [groups[i % len(groups)][i // len(groups)] for i in range(n)]
    dev = [groups[i % len(groups)][-1 - i // len(groups)] for i in range(n // 2)]
    return FewShotSet(train, dev, train, number, seed)


def leave_one_out(few_shot, i):
    """The demos of training example i: all others of its set, in a random order that depends on set and i."""
    others = few_shot.demos[:i] + few_shot.demos[i + 1:]
    random.Random(f"demos-{few_shot.seed}-{few_shot.number}-{i}").shuffle(others)
    return others


def icl_demos(few_shot, block):
    """All demos in a random order that depends on set and block, so that no single order stands for ICL."""
    rng = random.Random(f"icl-{few_shot.seed}-{few_shot.number}-{block}")
    return rng.sample(few_shot.demos, len(few_shot.demos))
