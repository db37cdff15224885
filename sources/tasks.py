"""The benchmarks: where the rows of each are, how a row becomes an item, its labels, prompts and parser.

To add one, write a function that turns a row into an `Item` (or None, to leave the row out) and an entry in `TASKS`.
"""
import csv
import io
import json
import os
import random
import re
import tarfile
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Callable

from sources import answers
from sources.offline import UserError, cached, download, read_member, say

CHOICE_LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
CONVERTED = "refs/convert/parquet"  # the hub's own conversion, where a repository still holds a loading script


@dataclass(frozen=True)
class Item:
    """One row of a data set before it is worded: the text to judge and its label's number, or the answer's text."""
    text: str
    label: int | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Hub:
    """Where the rows are on the Hugging Face hub. `files` are path patterns by split, for the converted branch."""
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


class CsvRow(dict):
    """A row whose values are all text."""


def field(row, name, kind=str):
    """The field `name` of a row, checked; `kind` is a type. In CSV, numbers, truth values and lists are read as such."""
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


# ---- rows -> items ------------------------------------------------------------------------------------------------


def classified(text_field, names, labels, limit=None):
    """Rows with a text and a numbered label. `names[i]` is the name of label i, None for rows to leave out."""
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
    return Item("\n".join([f"{question.strip()}", "Choices:", *lines]), label)


def lettered(count):
    """Multiple choice with `choices: {text, label}` and `answerKey`; rows with another count of options are left out."""
    def read(row):
        choices, key = field(row, "choices", dict), field(row, "answerKey")
        options, letters = field(choices, "text", list), field(choices, "label", list)
        if key not in letters or len(options) != len(letters):
            raise BadRow(f"the answerKey {key!r} is unknown (known: {', '.join(map(str, letters))})")
        return with_options(field(row, "question"), options, letters.index(key)) if len(options) == count else None
    return read


def sciq_options(row):
    """SciQ as multiple choice: the order of the options is drawn from the question, so it never changes."""
    options = [field(row, name) for name in ("correct_answer", "distractor1", "distractor2", "distractor3")]
    order = random.Random(field(row, "question")).sample(range(4), 4)
    return with_options(row["question"], [options[i] for i in order], order.index(0))


def sciq_text(row):
    answer = f"{field(row, 'support').strip()}\n#### {field(row, 'correct_answer').strip()}"
    return Item(field(row, "question").strip(), answer=one_block(answer))


def solved(question_field, answer_field):
    def read(row):
        return Item(field(row, question_field).strip(), answer=one_block(field(row, answer_field)))
    return read


def one_block(text):
    """A response without blank lines, at which evaluation would stop."""
    return re.sub(r"\s*\n\s*\n\s*", "\n", text.strip())


def rated(row):
    """Rated snippets: a mean rating above +1 is positive, below -1 negative, the rest is left out."""
    rating = field(row, "rating", float)
    return Item(field(row, "text").strip(), int(rating > 0)) if abs(rating) > 1 else None


SENTIMENT = dict(family="sentiment", labels=("negative", "positive"), plain_prompt="Review: {text}\nSentiment:")
TOPICS = dict(family="topics", labels=("world", "sports", "business", "sci/tech"),
              plain_prompt="Article: {text}\nTopic:")
ANSWERS = dict(prompt="Question:{text}\nAnswer:")
CHOICE = dict(family="choice", label_style="remap", **ANSWERS)
GRADE_SCHOOL = dict(family="numbers", max_tokens=200, parse=answers.number, same=answers.same_number,
                    read_row=solved("question", "answer"), **ANSWERS)

TASKS = {task.name: task for task in (
    Task("sst2", hub=Hub("stanfordnlp/sst2", test="validation"),  # the hub's test split has no labels
         read_row=classified("sentence", ("negative", "positive"), SENTIMENT["labels"]), **SENTIMENT),
    Task("finsen", hub=Hub("takala/financial_phrasebank", files="sentences_50agree/train/*.parquet", test="train"),
         read_row=classified("sentence", ("negative", None, "positive"), SENTIMENT["labels"]), **SENTIMENT),
    Task("poems", hub=Hub("google-research-datasets/poem_sentiment", files="default/{split}/*.parquet"),
         read_row=classified("verse_text", ("negative", "positive", None, None), SENTIMENT["labels"]), **SENTIMENT),
    Task("movies", snippets="movieReviewSnippets_GroundTruth.txt", read_row=rated, **SENTIMENT),
    Task("amazon", snippets="amazonReviewSnippets_GroundTruth.txt", read_row=rated, **SENTIMENT),
    Task("nyt", snippets="nytEditorialSnippets_GroundTruth.txt", read_row=rated, **SENTIMENT),
    Task("tweets", snippets="tweets_GroundTruth.txt", read_row=rated, **SENTIMENT),
    Task("agnews", hub=Hub("fancyzhx/ag_news"),
         read_row=classified("text", TOPICS["labels"], TOPICS["labels"]), **TOPICS),
    Task("bbcnews", hub=Hub("SetFit/bbc-news"), read_row=classified(
        "text", ("sci/tech", "business", "sports", "world", "world"), TOPICS["labels"], limit=256), **TOPICS),
    Task("strategytf", hub=Hub("wics/strategy-qa", files="strategyQA/test/*.parquet", train="test"),
         folder="strategyqa", family="truth", labels=("false", "true"), label_style="words",
         read_row=true_or_false, **ANSWERS),
    Task("sciq-mc", hub=Hub("allenai/sciq"), folder="sciq", labels=CHOICE_LABELS[:4], read_row=sciq_options, **CHOICE),
    Task("qasc", hub=Hub("allenai/qasc", test="validation"),  # the hub's test split has no answers
         labels=CHOICE_LABELS, read_row=lettered(8), **CHOICE),
    Task("arc", hub=Hub("allenai/ai2_arc", "ARC-Challenge"), labels=CHOICE_LABELS[:4], read_row=lettered(4), **CHOICE),
    Task("sciq", hub=Hub("allenai/sciq"), family="science", read_row=sciq_text, max_tokens=200,
         parse=answers.after_hashes, same=answers.same_words, **ANSWERS),
    Task("gsm8k", hub=Hub("openai/gsm8k", "main"), **GRADE_SCHOOL),
    Task("gsm8ks", hub=Hub("apple/GSM-Symbolic", "main", train="test"), **GRADE_SCHOOL),
    Task("hmath-algebra", hub=Hub("EleutherAI/hendrycks_math", "algebra"), folder="hmath_algebra", family="algebra",
         read_row=solved("problem", "solution"), max_tokens=200, parse=answers.final_formula, same=answers.same_formula,
         **ANSWERS),
)}
STAND_INS = {"sst2": "movies"}  # what a task falls back to, loudly, where no hub can be reached


def find_task(name):
    """The task `name`, or the user's own in the folder `name`, which is its name. Raises UserError for neither."""
    if name in TASKS:
        return TASKS[name]
    if Path(name).is_dir():
        path = Path(name).resolve()
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        return Task(f"{shown.as_posix()}/", family="own", read_row=None, folder=str(path), prompt="{text}")
    near = get_close_matches(name, TASKS, n=1)
    raise UserError(f"unknown dataset {name!r}{f' (did you mean {near[0]}?)' if near else ''}; use one of "
                    f"{', '.join(TASKS)}, or a folder with train.jsonl and test.jsonl")


def check_pair(train, test):
    """Raise UserError unless a model trained on the task `train` can be tested on `test`: same answers, other texts."""
    shared = min(len(train.labels), len(test.labels))
    if bool(train.labels) != bool(test.labels) or train.labels[:shared] != test.labels[:shared] or (
            not train.labels and train.family != test.family):
        first, second = (", ".join(task.labels) or f"free text ({task.family})" for task in (train, test))
        raise UserError(f"a model trained on {train.name} cannot be tested on {test.name}: the answers of the first "
                        f"are {first}, those of the second {second}; choose a task with the same labels")


# ---- reading ----------------------------------------------------------------------------------------------------


class NoHub(UserError):
    """The hub is out of reach and nothing is cached."""


def read_task(task, data_dir=None):
    """(rows by part, name of each part's place, source) of a task; rows are (line number, row).

    From the task's own folder, from `data_dir`, from the bundled snippets, or from the hub. Raises UserError.
    """
    if task.family == "own" or (data_dir and not task.snippets):
        folder = Path(task.folder) if task.family == "own" else Path(data_dir) / (task.folder or task.name)
        places = {part: find_part(folder, part) for part in ("train", "test")}
        return {part: read_lines(path) for part, path in places.items()}, places, f"folder:{folder.name}"
    if task.snippets:
        path = snippets_folder() / task.snippets
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        rows = [(i, {"text": text, "rating": float(rating)}) for i, (_, rating, text) in
                enumerate((line.split("\t", 2) for line in lines), start=1)]
        return split_pool(rows), {"train": path, "test": path}, "pypi:vaderSentiment==3.3.2"
    found = read_hub(task.hub)
    if found is None:
        raise NoHub(f"the hub cannot be reached for {task.name} and it is not cached; check the network, or give local "
                    f"copies with --data-dir, or use one of {', '.join(t.name for t in TASKS.values() if t.snippets)}, "
                    "which need no hub")
    rows, source = found
    if task.hub.train == task.hub.test:
        rows = split_pool(rows["train"])
    return rows, {part: f"{task.hub.repo} ({part})" for part in rows}, source


def split_pool(rows):
    """Part rows that come in one piece: a third of them, at most 1000, is the test part. Always the same third."""
    rows = list(rows)
    random.Random("split").shuffle(rows)
    size = min(1000, len(rows) // 3)
    return {"train": rows[size:], "test": rows[:size]}


def find_part(folder, part):
    for path in (folder / f"{part}.jsonl", folder / f"{part}.csv"):
        if path.exists():
            return path
    raise UserError(f"{folder} has no {part}.jsonl or {part}.csv; check the folder's name")


def read_lines(path):
    """(line number, row) for each line of a .jsonl or .csv file, UTF-8. Raises UserError that names file and line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[:error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: this is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the folder's name") from None
    return read_csv(path, text) if path.suffix == ".csv" else read_jsonl(path, text)


def read_csv(path, text):
    reader, rows = csv.DictReader(io.StringIO(text, newline=""), strict=True), []
    try:
        for row in reader:
            if any(extra.strip() for extra in row.pop(None, ())):
                raise UserError(f"{path}, line {reader.line_num}: the row has more fields than the header; put quotes "
                                "around a field that has commas in it")
            rows.append((reader.line_num, CsvRow(row)))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num + 1}: this is not CSV ({error}); fix the line") from None
    return rows


def read_jsonl(path, text):
    rows = []
    for i, line in enumerate(text.split("\n"), start=1):
        try:
            if line.strip():
                rows.append((i, json.loads(line)))
                json.dumps(rows[-1], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError(f"{path}, line {i}: half of a surrogate pair (\\ud800 to \\udfff) is no character; "
                            "write the whole character") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {i}: this is not a JSON object ({error}); write one object a line") from None
    return rows


def read_items(task, rows, place):
    """Rows -> items, without those that the task leaves out. Raises UserError that names the place of a bad row."""
    items = []
    for i, row in rows:
        try:
            item = task.read_row(row)
        except BadRow as error:
            raise UserError(f"{place}, line {i}: {error}; fix the row or leave it out") from None
        if item is not None:
            items.append(item)
    return items


# ---- your own data --------------------------------------------------------------------------------------------------


def read_own(task, parts, places):
    """Complete the user's own task from its rows {query, response}: (task, items by part).

    If every response is one of at most 10 short texts, each seen twice or more on average, it is a label task, else
    free text that is compared as a whole. Numbers and truth values are answers as they are written. Raises UserError
    where a query is repeated with another response.
    """
    items, said = {}, {}
    for part, rows in parts.items():
        items[part] = read_items(replace(task, read_row=own_row), rows, places[part])
        if not items[part]:
            raise UserError(f'{places[part]} holds no rows; write one {{"query": ..., "response": ...}} a line')
        for (i, _), item in zip(rows, items[part]):
            place, answer = said.setdefault(item.text, (f"{places[part]}, line {i}", item.answer))
            if answer != item.answer:
                raise UserError(f"{places[part]}, line {i}: the query has the response {item.answer!r} here and {answer!r} "
                                f"in {place}; keep one of the two")
    responses = [item.answer for part in items.values() for item in part]
    labels = sorted(set(responses))
    if not (2 <= len(labels) <= 10 and len(labels) * 2 <= len(responses) and max(map(len, labels)) <= 30):
        say(f"{task.name} is free text, compared as a whole")
        return replace(task, max_tokens=200), items
    say(f"{task.name} is a label task: {', '.join(labels)}")
    task = replace(task, labels=tuple(labels), label_style="digits" if all(map(is_number, labels)) else "words")
    return task, {part: [Item(item.text, labels.index(item.answer)) for item in items[part]] for part in items}


def own_row(row):
    response = row.get("response") if isinstance(row, dict) else None
    if isinstance(response, (int, float)):
        row = {**row, "response": json.dumps(response)}
    query, response = field(row, "query").strip(), one_block(field(row, "response"))
    if not query or not response:
        raise BadRow(f"the field {'query' if not query else 'response'!r} is empty")
    return Item(query, answer=response)


def is_number(text):
    return bool(re.fullmatch(r"[-+]?\d+(\.\d+)?", text))


# ---- where rows come from -----------------------------------------------------------------------------------


def snippets_folder():
    """The bundled rated snippets, unpacked once into the cache."""
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
    return cached("rated-snippets", build)


def load_hub_rows(repo, hub, **options):
    """{"train": rows, "test": rows} through `datasets`; `repo` is the hub's name or a local folder in its layout."""
    from datasets import load_dataset  # slow to import, and most runs do not need it

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

    revision, home = CONVERTED if hub.files else None, huggingface_hub.constants.HF_HOME
    try:
        sha = huggingface_hub.HfApi().dataset_info(hub.repo, revision=revision, timeout=3).sha
    except HfHubHTTPError as error:
        raise UserError(f"the hub refuses {hub.repo} ({error.response.status_code}); log in with `hf auth login` if "
                        "it is gated, or use --data-dir with local copies") from None
    except Exception:  # no network, no name server, a proxy in the way, offline mode: each has its own class
        sha = None
    if sha is None and not list(Path(home, "datasets").glob(f"*{hub.repo.split('/')[1]}*")):
        return None
    import datasets

    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    if sha is None:  # asked again, `datasets` would retry for half a minute; offline it looks at its cache alone
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        rows = load_hub_rows(hub.repo, hub, revision=revision or sha)
    except Exception as error:
        if sha is None:
            return None
        raise UserError(f"cannot load {hub.repo} from the hub ({str(error).splitlines()[0]}); "
                        "try again, or use --data-dir with local copies") from None
    return rows, f"hub:{hub.repo}@{(sha or 'cached')[:12]}"
