"""Examples and few-shot sets: where a task's rows come from, how they become prompts, which examples a run may see.

Rows come from the Hugging Face hub, from a local folder, or from the bundled rated snippets. `load` gives a task's
training pool and test part as `Example`s: a query X that ends where the answer starts, and the response Y that follows it
letter by letter.
"""
import csv
import hashlib
import io
import json
import os
import random
import tarfile
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from fetch import UserError, cached, download, read_member
from tasks import CONVERTED, STAND_INS, TASKS, BadRow, Item, Task, field

BLANK_LINE = "\n\n"  # between demos, and between the demos and the query
REMAP_WORDS = (  # arbitrary names for labels; those of one token are used, so that any tokenizer finds enough
    "apple river stone cloud table horse paper green music winter garden silver bridge orange window engine forest "
    "mountain copper kitchen summer tiger purple island bottle castle pencil rocket valley market yellow basket "
    "candle desert eagle flower guitar hammer jacket lemon mirror needle ocean parrot rabbit saddle turtle violin "
    "wagon anchor butter carpet dragon feather glass honey iron jungle knight ladder metal north olive piano queen"
).split()


@dataclass(frozen=True)
class Example:
    """A query X and its response Y; `label` is the number of the label, None for free text."""
    query: str
    response: str
    label: int | None = None


def find_task(name):
    """The task `name`, or the task of one's own in the folder `name`. Raises UserError for neither."""
    if name in TASKS:
        return TASKS[name]
    if Path(name).is_dir():
        return Task(Path(name).resolve().name, family="own", read_row=None, folder=str(Path(name).resolve()))
    near = get_close_matches(name, TASKS, n=1)
    raise UserError(f"unknown dataset {name!r}{f' (did you mean {near[0]}?)' if near else ''}; use one of "
                    f"{', '.join(TASKS)}, or a folder with train.jsonl and test.jsonl")


def check_pair(train, test):
    """Raise UserError unless a model trained on the task `train` can be tested on `test`: same answers, other texts."""
    shared = min(len(train.labels), len(test.labels))
    if bool(train.labels) != bool(test.labels) or train.labels[:shared] != test.labels[:shared] or (
            not train.labels and train.family != test.family):
        kinds = [f"{', '.join(task.labels) or 'free text (' + task.family + ')'}" for task in (train, test)]
        raise UserError(f"a model trained on {train.name} cannot be tested on {test.name}: the answers of the first "
                        f"are {kinds[0]}, those of the second {kinds[1]}; choose a task with the same labels")


# ---- reading ----------------------------------------------------------------------------------------------------


def read_lines(path):
    """(line number, row) for each line of a .jsonl or .csv file, UTF-8. Raises UserError that names file and line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[:error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: this is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the folder's name") from None
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            return [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num + 1}: this is not CSV ({error}); mend the line") from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if line.strip():
                rows.append((number, json.loads(line)))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: this is not a JSON object ({error}); "
                            "write one object a line") from None
    return rows


def read_part(folder, part):
    """The rows of `train` or `test` in a local folder, and the file that holds them."""
    for path in (folder / f"{part}.jsonl", folder / f"{part}.csv"):
        if path.exists():
            return path, read_lines(path)
    raise UserError(f"{folder} has no {part}.jsonl or {part}.csv; check the folder's name")


def read_snippets(file_name):
    """Rows {text, rating} of one file of the bundled rated snippets, unpacked once into the cache."""
    def build(folder):
        with tarfile.open(download("vaderSentiment", folder)) as outer:
            inner_file = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
            with tarfile.open(fileobj=io.BytesIO(read_member(inner_file, 2**24))) as inner:
                for task in TASKS.values():
                    if task.snippets:
                        member = inner.extractfile(f"hutto_ICWSM_2014/{task.snippets}")
                        (folder / task.snippets).write_bytes(read_member(member, 2**24))
        for archive in folder.glob("*.tar.gz"):
            archive.unlink()

    path = cached("rated-snippets", build) / file_name
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        _, rating, text = line.split("\t", 2)
        rows.append((number, {"text": text, "rating": float(rating)}))
    return path, rows


def load_hub_rows(repo, hub, **options):
    """{"train": rows, "test": rows} through `datasets`; `repo` is the hub's name or a local folder in its layout."""
    from datasets import load_dataset

    splits = {"train": hub.train, "test": hub.test}
    if hub.files:
        files = {part: hub.files.format(split=split) for part, split in splits.items()}
        parts = load_dataset(repo, data_files=files, **options)
        return {part: list(enumerate(parts[part])) for part in splits}
    parts = load_dataset(repo, hub.config, **options)
    return {part: list(enumerate(parts[split])) for part, split in splits.items()}


def read_hub(hub):
    """(rows by part, source) from the hub, or from what `datasets` keeps of it on this machine.

    Returns None where there is neither, decided within 5 seconds.
    """
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # nothing is sent anywhere
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    revision = CONVERTED if hub.files else None
    try:
        sha = huggingface_hub.HfApi().dataset_info(hub.repo, revision=revision, timeout=3).sha
    except HfHubHTTPError as error:
        raise UserError(f"the hub refuses {hub.repo} ({error.response.status_code}); log in with `hf auth login` if "
                        "it is gated, or use --data-dir with local copies") from None
    except Exception:  # no network, no name server, a proxy in the way, offline mode: each has its own class
        sha = None
    if sha is None and not list(Path(huggingface_hub.constants.HF_HOME, "datasets").glob(f"*{hub.repo.split('/')[1]}*")):
        return None
    import datasets

    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    if sha is None:  # asked again, `datasets` would retry for half a minute; in offline mode it looks at its cache alone
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        rows = load_hub_rows(hub.repo, hub, revision=revision or sha)
    except Exception as error:
        if sha is None:
            return None
        raise UserError(f"cannot load {hub.repo} from the hub ({str(error).splitlines()[0]}); "
                        "try again, or use --data-dir with local copies") from None
    return rows, f"hub:{hub.repo}@{(sha or 'cached')[:12]}"


def split_pool(rows):
    """Part rows that come in one piece: a third of them, at most 1000, is the test part. Always the same third."""
    rows = list(rows)
    random.Random("split").shuffle(rows)
    size = min(1000, len(rows) // 3)
    return {"train": rows[size:], "test": rows[:size]}


def read_task(task, data_dir=None):
    """(rows by part, name of each part's place, source) of a task, from where it can be had."""
    if task.family == "own" or (data_dir and not task.snippets):
        folder = Path(task.folder) if task.family == "own" else Path(data_dir) / (task.folder or task.name)
        parts = {part: read_part(folder, part) for part in ("train", "test")}
        source = f"folder:{folder.name}"
        return {part: rows for part, (_, rows) in parts.items()}, {part: path for part, (path, _) in parts.items()}, \
            source
    if task.snippets:
        path, rows = read_snippets(task.snippets)
        return split_pool(rows), dict.fromkeys(("train", "test"), path), "pypi:vaderSentiment==3.3.2"
    found = read_hub(task.hub)
    if found is None:
        raise NoHub(f"the hub cannot be reached for {task.name} and it is not cached; check the network, or give local "
                    f"copies with --data-dir, or use one of {', '.join(t.name for t in TASKS.values() if t.snippets)}, "
                    "which need no hub")
    rows, source = found
    if task.hub.train == task.hub.test:
        rows = split_pool(rows["train"])
    return rows, {part: f"{task.hub.repo} ({part})" for part in rows}, source


class NoHub(UserError):
    """The hub is out of reach and nothing is cached."""


def read_items(task, rows, place):
    """Rows -> items, without those that the task leaves out. Raises UserError that names the place of a bad row."""
    items = []
    for number, row in rows:
        try:
            item = task.read_row(row)
        except BadRow as error:
            raise UserError(f"{place}, line {number}: {error}; mend the row or leave it out") from None
        if item is not None:
            items.append(item)
    return items


# ---- wording ----------------------------------------------------------------------------------------------------


def label_texts(task, style, seed=0, is_one_token=lambda text: True):
    """What follows the query for each label: `0`, ` negative`, or an arbitrary word drawn by seed.

    Digits come without a space, as in the paper's `Label:0`, words with one, as in running text. The words of
    `remap` are those that `is_one_token` accepts; fewer labels get the first words of more labels, so that tasks of
    one family share them. Raises UserError if there are not enough.
    """
    if style == "digits":
        return [str(number) for number in range(len(task.labels))]
    if style == "words":
        return [f" {label}" for label in task.labels]
    words = [f" {word}" for word in REMAP_WORDS if is_one_token(f" {word}")]
    if len(words) < len(task.labels):
        raise UserError("this model's tokenizer knows too few of the words for --labels remap as one token; "
                        "use --labels digits or words")
    return random.Random(f"remap-{seed}").sample(words, len(words))[:len(task.labels)]


def word(task, items, prompt, texts):
    """Items -> examples, worded as `prompt` says."""
    return [Example(prompt.format(text=item.text), texts[item.label] if task.labels else f" {item.answer}", item.label)
            for item in items]


def drop_repeats(examples, seen=()):
    """Examples whose query, case and white space ignored, is neither in `seen` nor repeated."""
    seen, kept = set(seen), []
    for example in examples:
        if normal(example.query) not in seen:
            seen.add(normal(example.query))
            kept.append(example)
    return kept


def normal(text):
    return " ".join(text.lower().split())


# ---- one's own data ---------------------------------------------------------------------------------------------


def read_own(task, parts, places):
    """Complete a task of one's own from its rows {query, response}: (task, items by part).

    If every response is one of at most 10 short texts, each seen twice or more on average, it is a label task, else
    free text with exact match.
    """
    items = {}
    for part, rows in parts.items():
        items[part] = read_items(replace(task, read_row=lambda row: Item(
            filled(row, "query").strip(), answer=filled(row, "response").strip())), rows, places[part])
        if not items[part]:
            raise UserError(f"{places[part]} holds no rows; write one {{\"query\": ..., \"response\": ...}} a line")
    responses = [item.answer for part in items.values() for item in part]
    labels = sorted(set(responses))
    if 2 <= len(labels) <= 10 and len(labels) * 2 <= len(responses) and max(map(len, labels)) <= 30:
        task = replace(task, labels=tuple(labels), label_style="words")
        items = {part: [Item(item.text, labels.index(item.answer)) for item in rows] for part, rows in items.items()}
        return replace(task, prompt="{text}"), items
    return replace(task, prompt="{text}", max_tokens=200), items


def filled(row, name):
    value = field(row, name)
    if not value.strip():
        raise BadRow(f"the field {name!r} is empty")
    return value


# ---- a task, ready to use -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """The examples of a task: the pool that few-shot sets are drawn from, and the test part, which shares no text."""
    task: Task
    pool: list
    test: list
    source: str
    label_texts: list
    label_style: str | None
    prompt: str


def load(name, data_dir=None, plain=False, style=None, seed=0, is_one_token=lambda text: True, warn=print):
    """Read the task `name` and word it. `style` (digits, words, remap) overrides the task's own way with labels.

    Without a hub a task with a stand-in becomes it, with one call of `warn`. Raises UserError for whatever is wrong.
    """
    task, source = find_task(name), None
    try:
        parts, places, source = read_task(task, data_dir)
    except NoHub:
        if name not in STAND_INS:
            raise
        stand_in = TASKS[STAND_INS[name]]
        parts, places, source = read_task(stand_in)
        warn(f"warning: the hub cannot be reached, so {stand_in.name} ({source}) stands in for {name}: rated movie "
             "review snippets, other texts than SST-2's; results say so in `source`")
        task, source = replace(stand_in, name=name), f"stand-in {stand_in.name}, {source}"
    if task.family == "own":
        task, items = read_own(task, parts, places)
    else:
        items = {part: read_items(task, rows, places[part]) for part, rows in parts.items()}
    style = (style or task.label_style or "digits") if task.labels else None
    texts = label_texts(task, style, seed, is_one_token) if task.labels else []
    # Digits and arbitrary names are asked for as the paper does.
    prompt = task.plain_prompt if plain and task.plain_prompt and style == "words" else task.prompt
    test = drop_repeats(word(task, items["test"], prompt, texts))
    pool = drop_repeats(word(task, items["train"], prompt, texts), map(lambda example: normal(example.query), test))
    if not pool or not test:
        raise UserError(f"{name} has {len(pool)} training and {len(test)} test examples that differ; it needs some of "
                        "both")
    return Data(task, pool, test, source, texts, style, prompt)


# ---- few-shot sets ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FewShotSet:
    """n training examples and n // 2 dev examples; `number` tells the random draws apart."""
    train: list
    dev: list
    number: int
    seed: int


def few_shot_set(pool, n, number=0, seed=0, balanced=False):
    """Draw few-shot set `number` from the pool, the same for the same seed; n = 2 is the start of n = 4.

    Random draws as in the paper, or `balanced`: the labels alternate, so their counts differ by one at most.
    Training examples are taken from the front of a random order, dev examples from its back, so they never meet.
    Raises UserError if n is below 2 or the pool is too small.
    """
    if n < 2:
        raise UserError(f"n must be at least 2, not {n}: each example needs another one as its demo")
    rng = random.Random(f"few-shot-{seed}-{number}")
    groups = {}
    for example in pool:
        groups.setdefault(example.label if balanced else None, []).append(example)
    groups = [groups[label] for label in sorted(groups, key=lambda label: -1 if label is None else label)]
    rng.shuffle(groups)
    for group in groups:
        rng.shuffle(group)
    front = [iter(group) for group in groups]
    back = [reversed(group) for group in groups]
    if min(map(len, groups)) < -(-n // len(groups)) + -(-(n // 2) // len(groups)):
        raise UserError(f"n = {n} needs {n} training and {n // 2} dev examples, more than the pool of {len(pool)} has"
                        f"{' of some label' if balanced else ''}; use a smaller --n")
    return FewShotSet([next(front[place % len(groups)]) for place in range(n)],
                      [next(back[place % len(groups)]) for place in range(n // 2)], number, seed)


def leave_one_out(few_shot, place, each=False):
    """The demos of training example `place`: all others of its set, in a random order that depends on set and place.

    Where the set is balanced, that leaves more demos of the other labels than of its own. With `each`, one example of each
    other label is left out too, so that the demos are balanced again (no part of the paper): any of them, because the label of
    the last demo weighs most, and to leave out the first in order would mostly put another label there.
    """
    others = few_shot.train[:place] + few_shot.train[place + 1:]
    rng = random.Random(f"demos-{few_shot.seed}-{few_shot.number}-{place}")
    rng.shuffle(others)
    if each:
        for label in sorted({example.label for example in others} - {few_shot.train[place].label}):
            others.remove(rng.choice([example for example in others if example.label == label]))
    return others


def digest(examples):
    """A short sha256 of the texts of some examples, to tell in a result row which data it saw."""
    texts = [[example.query, example.response] for example in examples]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
