"""The benchmarks: where the rows of each are, how a row becomes an item, its labels, prompts and parser.

To add one, write a function that turns a row into an `Item` (or None: leave it out) and an entry in `TASKS`.
"""
import csv
import io
import json
import os
import random
import re
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from sources import answers
from sources.offline import UserError, cached, download, read_member, say, suggest

CHOICE_LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
CONVERTED = "refs/convert/parquet"  # the hub's own conversion, where a repository holds a loading script

@dataclass(frozen=True)
class Item:
    """A row before it is worded: the text to judge, and its label's number or the answer's text."""
    text: str
    label: int | None = None
    answer: str | None = None

@dataclass(frozen=True)
class Hub:
    """Where rows are on the Hugging Face hub; `files` is a path pattern in the converted branch."""
    repo: str
    config: str | None = None
    train: str = "train"
    test: str = "test"
    files: str | None = None

@dataclass(frozen=True)
class Task:
    """One benchmark: its family, labels (none for free text), rows, prompts and answer parser."""
    name: str
    family: str
    read_row: Callable[[dict], Item | None]
    labels: tuple = ()
    hub: Hub | None = None
    folder: str | None = None              # its name under --data-dir, where it is not the task's own
    snippets: str | None = None            # its file among the bundled rated snippets
    prompt: str = "Text:{text}\nLabel:"    # the paper's wording
    plain_prompt: str | None = None        # a wording that small models follow better
    label_style: str | None = None         # digits, words or remap, where the task and not the model decides
    max_tokens: int = 1                    # G: response tokens at most, EOS included
    parse: Callable[[str], object] = str.strip       # free text -> the answer in it
    same: Callable[[object, object], bool] = answers.same_text

class BadRow(Exception):
    """What is wrong with one row; the reader adds where it stands."""

class NoHub(UserError):
    """The hub is out of reach and nothing is cached."""

class CsvRow(dict):
    """A row whose values are all text."""

def field(row, name, kind=str):
    """The field `name` of a row, of the type `kind`; in CSV, numbers, truth values and lists are read."""
    value = row.get(name) if isinstance(row, dict) else None
    if isinstance(row, CsvRow) and kind is not str and value:
        try:
            value = json.loads(value.lower() if kind is bool else value)
            value = float(value) if kind is float and type(value) is int else value
        except ValueError:
            value = None
    if value is None or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        have = f"it has {', '.join(map(str, row))}" if isinstance(row, dict) else "it is no JSON object"
        raise BadRow(f"the row has no field {name!r} of type {kind.__name__} ({have})")
    return value

# ---- rows -> items -----------------------------------------------------------------------------------------

def classified(text_field, names, labels, limit=None):
    """Rows with a text and a numbered label; `names[i]` is that of label i, None to leave it out."""
    def read(row):
        text, i = " ".join(field(row, text_field).split()), field(row, "label", int)
        if not 0 <= i < len(names):
            raise BadRow(f"the label {i} is unknown (known: 0 to {len(names) - 1})")
        if limit and len(text) > limit:
            text = text[:limit + 1].rpartition(" ")[0] or text[:limit]
        return None if names[i] is None else Item(text, labels.index(names[i]))
    return read

def true_or_false(row):
    return Item(field(row, "question").strip(), int(field(row, "answer", bool)))

def with_options(question, options, label):
    lines = [f"[{i}]{option}" for i, option in enumerate(options)]
    return Item("\n".join([question.strip(), "Choices:", *lines]), label)

def lettered(count):
    """Multiple choice: `choices: {text, label}` and `answerKey`; other counts of options are left out."""
    def read(row):
        choices, key = field(row, "choices", dict), field(row, "answerKey")
        options, letters = field(choices, "text", list), field(choices, "label", list)
        if key not in letters or len(options) != len(letters):
            raise BadRow(f"the answerKey {key!r} is unknown (known: {', '.join(map(str, letters))})")
        item = with_options(field(row, "question"), options, letters.index(key))
        return item if len(options) == count else None
    return read

def sciq_options(row):
    """SciQ as multiple choice: the order of the options is drawn from the question, so it never changes."""
    options = [field(row, name) for name in ("correct_answer", "distractor1", "distractor2", "distractor3")]
    order = random.Random(field(row, "question")).sample(range(4), 4)
    return with_options(row["question"], [options[i] for i in order], order.index(0))

def sciq_text(row):
    answer = f"{field(row, 'support').strip()}\n#### {field(row, 'correct_answer').strip()}"
    return Item(field(row, "question").strip(), answer=one_block(answer))

def solved(question, answer):
    return lambda row: Item(field(row, question).strip(), answer=one_block(field(row, answer)))

def one_block(text):
    """A response without blank lines, at which evaluation would stop."""
    return re.sub(r"\s*\n\s*\n\s*", "\n", text.strip())

def rated(row):
    """Rated snippets: a mean rating above +1 is positive, below -1 negative, the rest is left out."""
    rating = field(row, "rating", float)
    return Item(field(row, "text").strip(), int(rating > 0)) if abs(rating) > 1 else None

FEELINGS, NEWS = ("negative", "positive"), ("world", "sports", "business", "sci/tech")
SENTIMENT = dict(family="sentiment", labels=FEELINGS, plain_prompt="Review: {text}\nSentiment:")
TOPICS = dict(family="topics", labels=NEWS, plain_prompt="Article: {text}\nTopic:")
ANSWERS = dict(prompt="Question:{text}\nAnswer:")
CHOICE = dict(family="choice", label_style="remap", **ANSWERS)
GRADE_SCHOOL = dict(family="numbers", max_tokens=200, parse=answers.number, same=answers.same_number,
                    read_row=solved("question", "answer"), **ANSWERS)

TASKS = {task.name: task for task in (
    Task("sst2", hub=Hub("stanfordnlp/sst2", test="validation"),  # the hub's test split has no labels
         read_row=classified("sentence", FEELINGS, FEELINGS), **SENTIMENT),
    Task("finsen", read_row=classified("sentence", ("negative", None, "positive"), FEELINGS), hub=Hub(
        "takala/financial_phrasebank", files="sentences_50agree/train/*.parquet", test="train"), **SENTIMENT),
    Task("poems", read_row=classified("verse_text", ("negative", "positive", None, None), FEELINGS), hub=Hub(
        "google-research-datasets/poem_sentiment", files="default/{split}/*.parquet"), **SENTIMENT),
    Task("movies", snippets="movieReviewSnippets_GroundTruth.txt", read_row=rated, **SENTIMENT),
    Task("amazon", snippets="amazonReviewSnippets_GroundTruth.txt", read_row=rated, **SENTIMENT),
    Task("nyt", snippets="nytEditorialSnippets_GroundTruth.txt", read_row=rated, **SENTIMENT),
    Task("tweets", snippets="tweets_GroundTruth.txt", read_row=rated, **SENTIMENT),
    Task("agnews", hub=Hub("fancyzhx/ag_news"), read_row=classified("text", NEWS, NEWS), **TOPICS),
    Task("bbcnews", hub=Hub("SetFit/bbc-news"), read_row=classified(
        "text", ("sci/tech", "business", "sports", "world", "world"), NEWS, limit=256), **TOPICS),
    Task("strategytf", hub=Hub("wics/strategy-qa", files="strategyQA/test/*.parquet", train="test"),
         folder="strategyqa", family="truth", labels=("false", "true"), label_style="words",
         read_row=true_or_false, **ANSWERS),
    Task("sciq-mc", hub=Hub("allenai/sciq"), folder="sciq", labels=CHOICE_LABELS[:4], read_row=sciq_options,
         **CHOICE),
    Task("qasc", hub=Hub("allenai/qasc", test="validation"),  # the hub's test split has no answers
         labels=CHOICE_LABELS, read_row=lettered(8), **CHOICE),
    Task("arc", hub=Hub("allenai/ai2_arc", "ARC-Challenge"), labels=CHOICE_LABELS[:4], read_row=lettered(4),
         **CHOICE),
    Task("sciq", hub=Hub("allenai/sciq"), family="science", read_row=sciq_text, max_tokens=200,
         parse=answers.after_hashes, same=answers.same_words, **ANSWERS),
    Task("gsm8k", hub=Hub("openai/gsm8k", "main"), **GRADE_SCHOOL),
    Task("gsm8ks", hub=Hub("apple/GSM-Symbolic", "main", train="test"), **GRADE_SCHOOL),
    Task("hmath-algebra", hub=Hub("EleutherAI/hendrycks_math", "algebra"), folder="hmath_algebra",
         family="algebra", read_row=solved("problem", "solution"), max_tokens=200,
         parse=answers.final_formula, same=answers.same_formula, **ANSWERS),
)}
STAND_INS = {"sst2": "movies"}  # what a task falls back to, loudly, where no hub can be reached

def find_task(name):
    """The task `name`, or the user's own in the folder `name`. Raises UserError for neither."""
    if name in TASKS:
        return TASKS[name]
    if Path(name).is_dir():
        path = Path(name).resolve()
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        return Task(f"{shown.as_posix()}/", family="own", read_row=own_row, folder=str(path), prompt="{text}")
    raise UserError(f"unknown dataset {name!r}{suggest(name, TASKS)}; use one of {', '.join(TASKS)}, or a "
                    "folder with train.jsonl and test.jsonl")

def check_pair(train, test):
    """Raise UserError unless a model that is trained on `train` can be tested on `test`."""
    shared = min(len(train.labels), len(test.labels))
    if bool(train.labels) != bool(test.labels) or train.labels[:shared] != test.labels[:shared] or (
            not train.labels and train.family != test.family):
        first, second = (", ".join(task.labels) or f"free text ({task.family})" for task in (train, test))
        raise UserError(f"a model trained on {train.name} cannot be tested on {test.name}: the answers of "
                        f"the first are {first}, those of the second {second}; choose a task with the same")

# ---- reading -----------------------------------------------------------------------------------------------

def read_task(task, data_dir=None):
    """(task, items by part, source) from the task's own folder, `data_dir`, the bundled snippets or the hub.

    Raises UserError that names the place of a bad row, NoHub where there is no way to the rows.
    """
    source, rows = None, {}
    if task.family == "own" or (data_dir and not task.snippets):
        folder = Path(task.folder) if task.family == "own" else Path(data_dir) / (task.folder or task.name)
        source, places = f"folder:{folder.name}", {p: folder / f"{p}.jsonl" for p in ("train", "test")}
        for part, path in places.items():
            places[part] = path if path.exists() else path.with_suffix(".csv")
            if not places[part].exists():
                raise UserError(f"{folder} has no {part}.jsonl or {part}.csv; check the folder's name")
            rows[part] = read_lines(places[part])
    elif task.snippets:
        path, source = cached("rated-snippets", unpack_snippets) / task.snippets, "pypi:vaderSentiment==3.3.2"
        lines = [line.split("\t", 2) for line in path.read_text("utf-8", errors="replace").splitlines()]
        rows["train"] = [(i, {"text": text, "rating": float(rating)})
                         for i, (_, rating, text) in enumerate(lines, start=1)]
        places = {"train": path, "test": path}
    else:
        rows, source = read_hub(task)
        places = {part: f"{task.hub.repo} ({part})" for part in ("train", "test")}
    if task.snippets or (not data_dir and task.hub and task.hub.train == task.hub.test):
        whole = list(rows["train"])  # rows in one piece: a third of them, at most 1000, is the test part
        random.Random("split").shuffle(whole)
        size = min(1000, len(whole) // 3)
        rows = {"train": whole[size:], "test": whole[:size]}
    items = {part: [] for part in rows}
    for part, (i, row) in ((part, line) for part in rows for line in rows[part]):
        try:
            items[part] += [item for item in [task.read_row(row)] if item is not None]
        except BadRow as error:
            raise UserError(f"{places[part]}, line {i}: {error}; fix the row or leave it out") from None
    return (task, items, source) if task.family != "own" else (*understand(task, rows, items, places), source)

def read_lines(path):
    """(line number, row) of a .jsonl or .csv file in UTF-8. Raises UserError with file and line."""
    line, text = 0, path.read_bytes()
    try:
        text = text.decode("utf-8-sig")
        if path.suffix == ".csv":
            reader, rows = csv.DictReader(io.StringIO(text, newline=""), strict=True), []
            for row in reader:
                line = reader.line_num
                if any(extra.strip() for extra in row.pop(None, ())):
                    raise ValueError("more fields than in the header; put quotes around one with commas")
                rows.append((line, CsvRow(row)))
            return rows
        rows = []
        for line, content in enumerate(text.split("\n"), start=1):
            if content.strip():
                rows.append((line, json.loads(content)))
                json.dumps(rows[-1], ensure_ascii=False).encode()
        return rows
    except UnicodeDecodeError as error:
        line, problem = text[:error.start].count(b"\n") + 1, "this is not UTF-8; save the file as UTF-8"
    except UnicodeEncodeError:
        problem = "half of a surrogate pair (\\ud800 to \\udfff) is no character; write the whole character"
    except csv.Error as error:
        line, problem = reader.line_num, f"this is not CSV ({error}); fix the line"
    except (ValueError, RecursionError) as error:
        kind = "the row has" if path.suffix == ".csv" else "this is not a JSON object:"
        problem = f"{kind} {error}{'' if path.suffix == '.csv' else '; write one object a line'}"
    raise UserError(f"{path}, line {line}: {problem}")

def load_hub_rows(repo, hub, **options):
    """{"train": rows, "test": rows} through `datasets`, of a hub name or a folder in its layout."""
    from datasets import load_dataset  # slow to import, and most runs do not need it

    splits = {"train": hub.train, "test": hub.test}
    if hub.files:
        files = {part: hub.files.format(split=split) for part, split in splits.items()}
        parts, splits = load_dataset(repo, data_files=files, **options), {"train": "train", "test": "test"}
    else:
        parts = load_dataset(repo, hub.config, **options)
    return {part: list(enumerate(parts[split])) for part, split in splits.items()}

def read_hub(task):
    """(rows by part, source) from the hub, or from what `datasets` keeps of it on this machine.

    Raises NoHub, within 5 seconds, where there is neither.
    """
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # nothing is sent anywhere
    hub, revision, sha = task.hub, CONVERTED if task.hub.files else None, None
    home, none = Path(huggingface_hub.constants.HF_HOME, "datasets"), NoHub(
        f"the hub cannot be reached for {task.name} and it is not cached; check the network, or give local "
        f"copies with --data-dir, or use one of {', '.join(t.name for t in TASKS.values() if t.snippets)}, "
        "which need no hub")
    try:
        sha = huggingface_hub.HfApi().dataset_info(hub.repo, revision=revision, timeout=3).sha
    except HfHubHTTPError as error:
        raise UserError(f"the hub refuses {hub.repo} ({error.response.status_code}); log in with `hf auth "
                        "login` if it is gated, or use --data-dir with local copies") from None
    except Exception:  # no network, no name server, a proxy in the way, offline mode: each has its own class
        if not list(home.glob(f"*{hub.repo.split('/')[1]}*")):
            raise none from None
    import datasets

    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    if sha is None:  # `datasets` would retry for half a minute; offline it looks at its cache alone
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        rows = load_hub_rows(hub.repo, hub, revision=revision or sha)
        return rows, f"hub:{hub.repo}@{(sha or 'cached')[:12]}"
    except Exception as error:
        raise none if sha is None else UserError(
            f"cannot load {hub.repo} from the hub ({str(error).splitlines()[0]}); try again, or use "
            "--data-dir with local copies") from None

def unpack_snippets(folder):
    """Put the bundled rated snippets, an archive inside an archive, into `folder`."""
    with tarfile.open(download("vaderSentiment", folder)) as outer:
        inner = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        with tarfile.open(fileobj=io.BytesIO(read_member(inner, 2**24))) as archive:
            for task in TASKS.values():
                if task.snippets:
                    member = archive.extractfile(f"hutto_ICWSM_2014/{task.snippets}")
                    (folder / task.snippets).write_bytes(read_member(member, 2**24))
    for file in folder.glob("*.tar.gz"):
        file.unlink()

# ---- your own data -----------------------------------------------------------------------------------------

def own_row(row):
    """A row {query, response}; a response that is a number or a truth value is that text."""
    response = row.get("response") if isinstance(row, dict) else None
    row = {**row, "response": json.dumps(response)} if isinstance(response, (int, float)) else row
    query, response = field(row, "query").strip(), one_block(field(row, "response"))
    if not query or not response:
        raise BadRow(f"the field {'response' if query else 'query'!r} is empty")
    return Item(query, answer=response)

def is_number(text):
    return bool(re.fullmatch(r"[-+]?\d+(\.\d+)?", text))

def understand(task, rows, items, places):
    """(task, items) of the user's own rows: labels or free text?

    If every response is one of at most 10 short texts, each seen twice or more on average, it is a label
    task, else free text that is compared as a whole. Raises UserError where a query has two responses.
    """
    said = {}
    for part in rows:
        if not items[part]:
            raise UserError(f'{places[part]} holds no rows; write lines of {{"query": ..., "response": ...}}')
        for (i, _), item in zip(rows[part], items[part]):
            place, answer = said.setdefault(item.text, (f"{places[part]}, line {i}", item.answer))
            if answer != item.answer:
                raise UserError(f"{places[part]}, line {i}: the query has the response {item.answer!r} here "
                                f"and {answer!r} in {place}; keep one of the two")
    responses = [item.answer for part in items.values() for item in part]
    labels = sorted(set(responses))
    if not (2 <= len(labels) <= 10 and len(labels) * 2 <= len(responses) and max(map(len, labels)) <= 30):
        say(f"{task.name} is free text, compared as a whole")
        return replace(task, max_tokens=200), items
    say(f"{task.name} is a label task: {', '.join(labels)}")
    style = "digits" if all(map(is_number, labels)) else "words"
    return replace(task, labels=tuple(labels), label_style=style), {
        part: [Item(item.text, labels.index(item.answer)) for item in found] for part, found in items.items()}
