"""Examples and few-shot sets: how rows become prompts and labels, and which examples a run sees.

An example is a query X, which ends where the answer starts, and the response Y that follows it
letter by letter. `sources/tasks.py` says where rows come from, a user's own included.
"""

import itertools
import math
import random
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from sources import own, readers, tasks
from support import records
from support.cli import LABEL_STYLES, UserError, log

BLANK_LINE = "\n\n"  # between demos, and between the demos and the query
BLOCK = 16  # queries that share one order of the demos
UNRELATED = ("nyt", "tweets")  # texts on which to see what tuning changes elsewhere
UNRELATED_TOKENS = 16  # of each text: it costs less than a test, and batches need no padding

# Arbitrary names for labels. Those of one token are used, so that any tokenizer finds enough.
REMAP_WORDS = (
    "apple river stone cloud table horse paper green music winter garden silver bridge orange "
    "window engine forest mountain copper kitchen summer tiger purple island bottle castle pencil "
    "rocket valley market yellow basket candle desert eagle flower guitar hammer jacket lemon "
    "mirror needle ocean parrot rabbit saddle turtle violin wagon anchor butter carpet dragon "
    "feather glass honey iron jungle knight ladder metal north olive piano queen"
).split()


@dataclass(frozen=True)
class Example:
    """A query X and its response Y; `label` is the number of the label, None for free text."""

    query: str
    response: str
    label: int | None = None


@dataclass(frozen=True)
class Data:
    """A task's examples, and how its labels look in this run."""

    spec: tasks.Task  # how the task is read, asked and parsed
    pool: list[Example]  # few-shot sets are drawn from it
    test: list[Example]  # held out
    source: str
    prompt: str
    label_style: str | None  # one of LABEL_STYLES; None for free text
    label_texts: list[str]
    label_tokens: list[int]  # the first token of each label behind a query
    max_tokens: int  # G at most: 1 for label tasks

    @cached_property
    def pool_digest(self) -> str:
        return digest(self.pool)


@dataclass(frozen=True)
class Options:
    """How a task is read and worded. Without `labels` the task's own style counts, or else
    `default_labels`, which suits the model.
    """

    labels: str | None = None
    default_labels: str | None = None
    plain: bool = False  # `Review: ...` instead of the paper's `Text:...`, for small models
    data_dir: str | None = None
    max_tokens: int | None = None
    seed: int = 0

    @classmethod
    def of(cls, args, entry) -> "Options":
        """Those of a command line, for a model's entry in `engine.models.MODELS`."""
        return cls(
            labels=args.labels,
            default_labels=entry.labels,
            plain=entry.plain,
            data_dir=args.data_dir,
            max_tokens=args.max_tokens,
            seed=args.seed,
        )


# ---- loading -------------------------------------------------------------------------------------


def load(name: str, tokenizer, options: Options = Options()) -> Data:
    """Read the task `name` and word it. Raises UserError for whatever is wrong with it.

    Without a hub, a task that has a stand-in becomes it, with a warning.
    """
    rows = read_or_stand_in(name, options.data_dir)
    task = rows.task
    check_parts(name, rows.train, rows.test)
    style = None
    labels = Labels([], [])
    prompt = task.prompt
    if task.labels:
        style = options.labels or task.label_style or options.default_labels or "digits"
        if options.plain and task.plain_prompt and style == "words":
            prompt = task.plain_prompt  # digits and arbitrary names are asked for as the paper does
        query = prompt.format(text=rows.train[0].text)
        labels = find_labels(task, style, options.seed, tokenizer, query)
    as_written = task.family == "own"  # your own queries may differ in case alone
    worded_test = [word(item, prompt, labels.texts) for item in rows.test]
    worded_pool = [word(item, prompt, labels.texts) for item in rows.train]
    test = drop_repeats(worded_test, [], as_written)
    pool = drop_repeats(worded_pool, test, as_written)
    repeats = len(worded_test) + len(worded_pool) - len(test) - len(pool)
    if repeats and as_written:
        log(f"{task.name}: {repeats} rows repeat a query and are left out")
    check_parts(name, pool, test)
    max_tokens = options.max_tokens or task.max_tokens
    if task.labels:
        check_joins(task, style, options.seed, tokenizer, pool + test)
        max_tokens = 1
    return Data(
        task, pool, test, rows.source, prompt, style, labels.texts, labels.tokens, max_tokens
    )


def check_parts(name: str, train: list, test: list) -> None:
    """Raise UserError if there is nothing to train or to test on."""
    if not train or not test:
        raise UserError(
            f"{name} has {len(train)} training examples that are no test queries and {len(test)} "
            "test examples; it needs both"
        )


def check_joins(
    task: tasks.Task, style: str, seed: int, tokenizer, examples: list[Example]
) -> None:
    """Raise UserError where a query and its label would read as one number: `1 to 5` and `2`."""
    for example in examples:
        if example.query[-1].isdigit() and example.response[0].isdigit():
            advice = other_styles(task, style, seed, tokenizer, example.query)
            raise UserError(
                f"a query of {task.name} ends in a digit ({example.query[-20:]!r}), and the label "
                f"{example.response} behind it would read as the same number; end queries in a "
                f"colon, or {advice}"
            )


def load_with_tests(
    name: str, test_names: list[str], tokenizer, options: Options = Options()
) -> tuple[Data, list[Data]]:
    """The training task, and the tasks to test on (the training task unless named), worded like it.

    Raises UserError where a model that is trained on the one cannot be tested on the other.
    """
    [name] = task_names([name])
    test_names = task_names(test_names) or [name]
    found = load_alike([name, *test_names], tokenizer, options)
    others = [test for other, test in found.items() if other != name]
    found[name] = without_tested(found[name], others)
    return found[name], [found[test_name] for test_name in test_names]


def task_names(names: list[str]) -> list[str]:
    """The names of tasks, each once and as it is shown: `my_task/` for the folder `./my_task`."""
    return list(dict.fromkeys(tasks.find_task(name).name for name in names))


def load_alike(names: list[str], tokenizer, options: Options) -> dict[str, Data]:
    """Tasks by name, all worded like the first one. Raises UserError if they do not go together."""
    names = task_names(names)  # an unknown name fails before anything is read
    for name in names:
        task = tasks.find_task(name)
        if task.family != "own" and Path(name, "train.jsonl").exists():
            log(f"{name} is the benchmark; write ./{name} for your folder of that name")
    first = load(names[0], tokenizer, options)
    found = {names[0]: first}
    for name in names[1:]:
        found[name] = load(name, tokenizer, replace(options, labels=first.label_style))
        tasks.check_pair(first.spec, found[name].spec)
    check_distinct(list(found.values()))
    return found


def without_tested(training: Data, tests: list[Data]) -> Data:
    """The training task without the queries that another task tests on."""
    tested = [example for test in tests for example in test.test]
    pool = drop_repeats(training.pool, tested, as_written=training.spec.family == "own")
    count = len(training.pool) - len(pool)
    if count:
        log(f"{training.spec.name}: {count} training rows are test queries too and are left out")
    check_parts(training.spec.name, pool, training.test)
    return replace(training, pool=pool)


def check_distinct(tasks_read: list[Data]) -> None:
    """Raise UserError where two names stand for the same texts: one would pass for another test."""
    for one, other in itertools.combinations(tasks_read, 2):
        if same_texts(one, other):
            raise UserError(
                f"{one.spec.name} and {other.spec.name} are the same texts here "
                f"({other.source}); use one of the two names"
            )


def same_texts(first: Data, second: Data) -> bool:
    """Whether two tasks hold the same rows under two names, as `sst2` and its stand-in do."""
    return (first.pool, first.test) == (second.pool, second.test)


def read_or_stand_in(name: str, data_dir: str | None) -> tasks.TaskRows:
    """A task's rows, or with no hub those of its stand-in under the task's name."""
    try:
        return tasks.read_task(tasks.find_task(name), data_dir)
    except readers.NoHub:
        if name not in tasks.STAND_INS:
            raise
    rows = tasks.read_task(tasks.TASKS[tasks.STAND_INS[name]])
    stand_in = rows.task.name
    log(
        f"warning: the hub cannot be reached, so {stand_in} ({rows.source}) stands in for {name}: "
        "rated movie review snippets, other texts than SST-2's; results say so in `source`"
    )
    source = f"stand-in {stand_in}, {rows.source}"
    return replace(rows, task=replace(rows.task, name=name), source=source)


def word(item: readers.Item, prompt: str, texts: list[str]) -> Example:
    """An item as a query and a response in this run's wording."""
    text = item.text
    if item.options:  # of multiple choice; they carry the labels' own texts
        lines = [f"[{label.strip()}]{option}" for label, option in zip(texts, item.options)]
        text = "\n".join([text, "Choices:", *lines])
    query = prompt.format(text=text)
    if texts:
        return Example(query, texts[item.label], item.label)
    return Example(query, f" {item.answer}")


def drop_repeats(examples: list[Example], others: list[Example], as_written: bool) -> list[Example]:
    """Examples whose query is neither in `others` nor repeated.

    Case and spaces make a difference only if `as_written`.
    """

    def key(example):
        return example.query if as_written else " ".join(example.query.lower().split())

    seen = {key(example) for example in others}
    kept = []
    for example in examples:
        if key(example) not in seen:
            kept.append(example)
        seen.add(key(example))
    return kept


def draw_test(task: Data, count: int, seed: int = 0, number: int = 0) -> Data:
    """The task with `count` of its test queries, or all of them if there are fewer.

    They are drawn anew for each few-shot set `number`, so that intervals over sets cover them.
    """
    if count >= len(task.test):
        return task
    return replace(task, test=random.Random(f"test-{seed}-{number}").sample(task.test, count))


def unrelated_prompts(tokenizer, leave_out: list[Data], count: int = 200) -> list[list[int]]:
    """The first tokens of bundled texts that have nothing to do with the tasks, shortest first.

    Empty, with a warning, where they cannot be fetched.
    """
    used = {task.spec.snippets for task in leave_out}
    names = [name for name in UNRELATED if tasks.TASKS[name].snippets not in used]
    prompts = []
    for name in names:
        try:
            rows = tasks.read_task(tasks.TASKS[name])
        except UserError as error:
            log(f"warning: what tuning changes elsewhere is not measured ({error})")
            return []
        for item in random.Random("unrelated").sample(rows.test, count // len(names)):
            prompts.append(prompt_tokens(tokenizer, [], item.text)[:UNRELATED_TOKENS])
    return sorted(prompts, key=len)


# ---- labels and tokens ---------------------------------------------------------------------------


class StyleError(Exception):
    """Why the labels of a task cannot be written in a style."""


@dataclass(frozen=True)
class Labels:
    """What follows a query for each label, and its first token."""

    texts: list[str]
    tokens: list[int]


def find_labels(task: tasks.Task, style: str, seed: int, tokenizer, query: str) -> Labels:
    """The labels of a task in a style, behind queries like `query`.

    Raises UserError where the style does not do for them; it names those that do.
    """
    try:
        return labels_in(style, task, seed, tokenizer, query)
    except StyleError as error:
        advice = other_styles(task, style, seed, tokenizer, query)
        raise UserError(f"{error}; {advice}") from None


def labels_in(style: str, task: tasks.Task, seed: int, tokenizer, query: str) -> Labels:
    """As `find_labels`. Raises StyleError where the style does not do."""
    texts = write_labels(task, style, seed, tokenizer)
    tokens = first_tokens(tokenizer, query, texts)
    clash = same_start(tokens)
    if clash is None:
        return Labels(texts, tokens)
    first, second = (texts[i] for i in clash)
    if first == second:
        raise StyleError(f"the label {first!r} of {task.name} adds no token to a query")
    raise StyleError(
        f"the labels {first!r} and {second!r} of {task.name} start with the same token under this "
        "model's tokenizer and cannot be told apart"
    )


def other_styles(task: tasks.Task, style: str, seed: int, tokenizer, query: str) -> str:
    """What to use instead of a style: the styles that work for this task and tokenizer."""
    others = []
    for other in LABEL_STYLES:
        if other == style:
            continue
        with suppress(StyleError, UserError):
            labels_in(other, task, seed, tokenizer, query)
            others.append(other)
    return f"use --labels {' or '.join(others)}" if others else "use another model"


def write_labels(task: tasks.Task, style: str, seed: int, tokenizer) -> list[str]:
    """What follows the query for each label: `0`, ` negative`, or an arbitrary word drawn by seed.

    Digits come without a space, as in the paper's `Label:0`, words with one, as in running text;
    labels that are numbers themselves stay those numbers. Tasks of one family share the words of
    `remap`: fewer labels get the first words of more labels. Raises StyleError if there are too
    few, or a number would become another one.
    """
    if style == "words":
        return [f" {label}" for label in task.labels]
    if style == "digits":
        numbers = [label for label in task.labels if own.is_number(label)]
        if numbers and len(numbers) < len(task.labels):
            raise StyleError(
                f"with --labels digits the label {numbers[0]} of {task.name} would become another "
                "number"
            )
        return numbers or [str(i) for i in range(len(task.labels))]
    names = [f" {name}" for name in REMAP_WORDS]
    single = [name for name in names if len(new_tokens(tokenizer, "Label:", name)) == 1]
    if len(single) < len(task.labels):
        raise StyleError(
            "this model's tokenizer knows too few of the words for --labels remap as one token"
        )
    return random.Random(f"remap-{seed}").sample(single, len(single))[: len(task.labels)]


def first_tokens(tokenizer, query: str, texts: list[str]) -> list[int | None]:
    """The first token that each text adds behind a query, None where it adds none."""
    tokens = []
    for text in texts:
        added = new_tokens(tokenizer, query, text)
        tokens.append(added[0] if added else None)
    return tokens


def same_start(tokens: list[int | None]) -> tuple[int, int] | None:
    """The numbers of the first two labels that cannot be told apart, or None; twice the same number
    for one that adds no token.
    """
    for i, token in enumerate(tokens):
        if token is None:
            return tokens.index(None), i
        if token in tokens[:i]:
            return tokens.index(token), i
    return None


def prompt_tokens(tokenizer, demos: list[Example], query: str) -> list[int]:
    """The tokens of the demos and the query, joined by blank lines; with no demos, of the query.

    A demo's query and response are tokenised apart, so that the query ends as the last query does.
    """
    queries = [*(demo.query for demo in demos), query]
    tokens = whole_tokens(tokenizer, queries[0])
    for i, demo in enumerate(demos):
        following = demo.response + BLANK_LINE + queries[i + 1]
        tokens = tokens + new_tokens(tokenizer, demo.query, following)
    return tokens


def whole_tokens(tokenizer, text: str) -> list[int]:
    """The tokens of a text: with the beginning-of-sequence token where the tokenizer adds one,
    never with an end. Raises UserError for a token that the model does not embed.
    """
    tokens = tokenizer(text).input_ids
    check_embedded(tokenizer, tokens)
    ended = tokens and tokens[-1] == tokenizer.eos_token_id
    if ended and not text.endswith(tokenizer.eos_token):
        return tokens[:-1]
    return tokens


def new_tokens(tokenizer, query: str, response: str) -> list[int]:
    """The tokens that a response adds behind its query; alone, some tokenizers put a `▁` first."""
    before = whole_tokens(tokenizer, query)
    both = whole_tokens(tokenizer, query + response)
    if both[: len(before)] == before:
        return both[len(before) :]
    return tokenizer(response, add_special_tokens=False).input_ids  # checked as a part of `both`


def check_embedded(tokenizer, tokens: list[int]) -> None:
    """Raise UserError for a token that the model has no embedding for.

    Some tokenizers have such tokens: names in them that no text of ours should hold, of images for
    example. `engine.models.find` notes them as `not_embedded`, {token: name}.
    """
    for token, name in getattr(tokenizer, "not_embedded", {}).items():
        if token in tokens:
            raise UserError(
                f"a text holds {name!r}, a token of the tokenizer that the model does not embed; "
                "write it in another way, or use another model"
            )


def gold_tokens(tokenizer, example: Example, max_tokens: int) -> list[int]:
    """The tokens of the true response Y: of a label the first, of a text all and the end token."""
    tokens = new_tokens(tokenizer, example.query, example.response)
    if example.label is not None:
        return tokens[:1]
    return [*tokens, tokenizer.eos_token_id][:max_tokens]


def read_answers(
    tokenizer, test: Data, responses: list[list[int]], ends: set[int]
) -> tuple[list, list[bool]]:
    """What each response (token ids) answers, by the task's parser, and whether it is right.

    All is decoded up to the end token, special tokens in users' text too. The true response is also
    compared as this tokenizer writes it back, since some change characters.
    """
    answers = []
    right = []
    for response, example in zip(responses, test.test):
        written = response[:-1] if response and response[-1] in ends else response
        text = tokenizer.decode(written).replace("\r\n", "\n").strip().split(BLANK_LINE)[0]
        answer = test.spec.parse(text)
        same = test.spec.same(answer, test.spec.parse(example.response))
        if not same:
            tokens = tokenizer(example.response, add_special_tokens=False).input_ids
            same = test.spec.same(answer, test.spec.parse(tokenizer.decode(tokens)))
        answers.append(answer)
        right.append(same)
    return answers, right


# ---- few-shot sets -------------------------------------------------------------------------------


@dataclass(frozen=True)
class FewShotSet:
    """n training examples and n // 2 dev examples; `number` tells the random draws apart.

    `demos` is what ICL shows of the training examples: themselves, unless a study replaces them.
    """

    train: list[Example]
    dev: list[Example]
    demos: list[Example]
    number: int
    seed: int


def few_shot_set(
    pool: list[Example], n: int, number: int = 0, seed: int = 0, balanced: bool = False
) -> FewShotSet:
    """Draw few-shot set `number` from the pool by seed; n = 2 is the start of n = 4.

    Draws are random as in the paper, or `balanced`: the labels alternate, so their counts differ by
    one at most. Training examples come from the front of a random order, dev examples from its
    back, so they never meet. Raises UserError if n is below 2 or the pool is too small.
    """
    if n < 2:
        raise UserError(
            f"n must be at least 2, not {n}: each example needs another one as its demo"
        )
    rng = random.Random(f"few-shot-{seed}-{number}")
    groups = by_label(pool) if balanced else [list(pool)]
    rng.shuffle(groups)
    for group in groups:
        rng.shuffle(group)
    check_pool(groups, n, balanced, len(pool))
    train = [groups[i % len(groups)].pop(0) for i in range(n)]
    dev = [groups[i % len(groups)].pop() for i in range(n // 2)]
    return FewShotSet(train, dev, train, number, seed)


def balance(task: Data, asked: bool | None, default: bool) -> bool:
    """Whether few-shot sets are balanced: as asked, or as suits the model; free text never is."""
    if task.label_style is None:
        return False
    return default if asked is None else asked


def by_label(pool: list[Example]) -> list[list[Example]]:
    """The examples of each label, in the order of the labels; free text is one group."""
    groups = {}
    for example in pool:
        groups.setdefault(example.label, []).append(example)
    return [
        groups[label] for label in sorted(groups, key=lambda label: -1 if label is None else label)
    ]


def check_pool(groups: list[list[Example]], n: int, balanced: bool, size: int) -> None:
    """Raise UserError if a group has too few examples for its share of the set."""
    needed = math.ceil(n / len(groups)) + math.ceil(n // 2 / len(groups))
    smallest = min(groups, key=len)
    if len(smallest) >= needed:
        return
    problem = (
        f"n = {n} needs {n} training and {n // 2} dev examples, more than the pool of {size} has"
    )
    if balanced and len(groups) > 1:
        label = smallest[0].response.strip()
        raise UserError(f"{problem} of the label {label}; use a smaller --n or --no-balanced")
    raise UserError(f"{problem}; use a smaller --n")


def leave_one_out(few_shot: FewShotSet, i: int) -> list[Example]:
    """The demos of training example i: all others of its set, in an order drawn by set and i."""
    others = few_shot.demos[:i] + few_shot.demos[i + 1 :]
    random.Random(f"demos-{few_shot.seed}-{few_shot.number}-{i}").shuffle(others)
    return others


def icl_demos(few_shot: FewShotSet, block: int) -> list[Example]:
    """All demos in an order drawn by set and block, so that no single order stands for ICL."""
    rng = random.Random(f"icl-{few_shot.seed}-{few_shot.number}-{block}")
    return rng.sample(few_shot.demos, len(few_shot.demos))


@dataclass(frozen=True)
class Block:
    """Queries that run together: their numbers, shortest first, and their prompts."""

    numbers: list[int]
    prompts: list[list[int]]


def query_blocks(
    tokenizer, examples: list[Example], few_shot: FewShotSet | None = None
) -> list[Block]:
    """Blocks of held-out queries, behind the demos of `few_shot` or alone.

    Behind demos a block is cut from the given order and shares one order of the demos, so that a
    query's demos do not depend on the other queries' lengths. Alone, blocks hold similar lengths.
    """
    queries = [example.query for example in examples]
    lengths = [len(prompt_tokens(tokenizer, [], query)) for query in queries]
    order = list(range(len(queries)))
    if few_shot is None:
        order.sort(key=lambda i: lengths[i])
    blocks = []
    for start in range(0, len(order), BLOCK):
        demos = icl_demos(few_shot, len(blocks)) if few_shot else []
        numbers = sorted(order[start : start + BLOCK], key=lambda i: lengths[i])
        prompts = [prompt_tokens(tokenizer, demos, queries[i]) for i in numbers]
        blocks.append(Block(numbers, prompts))
    return blocks


# ---- what a results row tells of them ------------------------------------------------------------


def training_settings(task: Data, few_shot: FewShotSet, balanced: bool) -> dict:
    """What a results row tells of the training data, to run it again and to tell it from others."""
    return {
        "dataset": task.spec.name,
        "source": task.source,
        "pool_data": task.pool_digest,
        "prompt": task.prompt,
        "labels": task.label_style,
        "max_tokens": task.max_tokens,
        "n": len(few_shot.train),
        "set": few_shot.number,
        "balanced": balanced,
        "train_labels": [
            example.response.strip() for example in few_shot.train if task.label_texts
        ],
        "dev_labels": [example.response.strip() for example in few_shot.dev if task.label_texts],
        "seed": few_shot.seed,
        "train_data": digest(few_shot.train),
        "dev_data": digest(few_shot.dev),
    }


def test_settings(test: Data) -> dict:
    """What a results row tells of the test queries."""
    return {
        "eval_dataset": test.spec.name,
        "eval_source": test.source,
        "test": len(test.test),
        "test_data": digest(test.test),
    }


def digest(examples: list[Example]) -> str:
    """A short sum of the texts of some examples: which data a row saw."""
    return records.digest([[example.query, example.response] for example in examples])
