"""The benchmarks: where the rows of each are, how a row becomes an item, its labels, prompts and
parser.

To add one, write a function that turns a row into an `Item` (or None: leave it out), and an entry
in `TASKS`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sources import answers, formulas, own, readers
from sources.own import one_block
from sources.readers import BadRow, Hub, Item, field
from support.cli import UserError, log, suggest

CHOICE_LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven")


@dataclass(frozen=True)
class Task:
    """One benchmark: its family, labels (none for free text), rows, prompts and answer parser."""

    name: str
    family: str  # tasks of one family may be tested on each other
    read_row: Callable[[dict], Item | None]
    labels: tuple[str, ...] = ()
    hub: Hub | None = None
    folder: str | None = None  # its name under --data-dir, where it is not the task's own
    snippets: str | None = None  # its file among the bundled rated snippets
    prompt: str = "Text:{text}\nLabel:"  # the paper's wording
    plain_prompt: str | None = None  # a wording that small models follow better
    label_style: str | None = None  # digits, words or remap, where the task decides
    max_tokens: int = 1  # G: response tokens at most, EOS included
    parse: Callable[[str], object] = str.strip  # free text -> the answer in it
    same: Callable[[object, object], bool] = answers.same_text


@dataclass(frozen=True)
class TaskRows:
    """A task's items, to train on and held out, and where they are from."""

    task: Task
    train: list[Item]
    test: list[Item]
    source: str


# ---- rows -> items -------------------------------------------------------------------------------


def classified(text_field: str, names: tuple, labels: tuple, limit: int | None = None) -> Callable:
    """Rows with a text and a numbered label; `names[i]` is that of label i, None to leave it out.

    Texts are cut at a word to at most `limit` characters.
    """

    def read(row):
        text = " ".join(field(row, text_field).split())
        number = field(row, "label", int)
        if not 0 <= number < len(names):
            raise BadRow(f"the label {number} is unknown (known: 0 to {len(names) - 1})")
        if names[number] is None:
            return None
        if limit and len(text) > limit:
            text = text[: limit + 1].rpartition(" ")[0] or text[:limit]
        return Item(text, labels.index(names[number]))

    return read


def true_or_false(row: dict) -> Item:
    return Item(field(row, "question").strip(), int(field(row, "answer", bool)))


def lettered(count: int) -> Callable:
    """Multiple choice: `choices: {text, label}` and `answerKey`.

    Questions with another count of options than the labels are left out.
    """

    def read(row):
        choices = field(row, "choices", dict)
        key = field(row, "answerKey")
        options = field(choices, "text", list)
        letters = field(choices, "label", list)
        if key not in letters or len(options) != len(letters):
            known = ", ".join(str(letter) for letter in letters)
            raise BadRow(f"the answerKey {key!r} is unknown (known: {known})")
        if len(options) != count:
            return None
        question = field(row, "question").strip()
        return Item(question, letters.index(key), options=tuple(options))

    return read


def sciq_options(row: dict) -> Item:
    """SciQ as multiple choice: the order of the options is drawn from the question, so it never
    changes.
    """
    names = ("correct_answer", "distractor1", "distractor2", "distractor3")
    options = [field(row, name) for name in names]
    order = random.Random(field(row, "question")).sample(range(4), 4)
    shuffled = tuple(options[i] for i in order)
    return Item(row["question"].strip(), order.index(0), options=shuffled)


def sciq_text(row: dict) -> Item:
    answer = f"{field(row, 'support').strip()}\n#### {field(row, 'correct_answer').strip()}"
    return Item(field(row, "question").strip(), answer=one_block(answer))


def solved(question: str, answer: str) -> Callable:
    """Problems with their worked solutions, in the fields `question` and `answer`."""

    def read(row):
        return Item(field(row, question).strip(), answer=one_block(field(row, answer)))

    return read


def rated(row: dict) -> Item | None:
    """Rated snippets: a mean rating above +1 is positive, below -1 negative, the rest left out."""
    rating = field(row, "rating", float)
    if abs(rating) <= 1:
        return None
    return Item(field(row, "text").strip(), int(rating > 0))


# ---- the table -----------------------------------------------------------------------------------

FEELINGS = ("negative", "positive")
NEWS = ("world", "sports", "business", "sci/tech")
NEWS_OF_BBC = ("sci/tech", "business", "sports", "world", "world")
FINANCE = ("negative", None, "positive")
POEMS = ("negative", "positive", None, None)
SENTIMENT = dict(family="sentiment", labels=FEELINGS, plain_prompt="Review: {text}\nSentiment:")
TOPICS = dict(family="topics", labels=NEWS, plain_prompt="Article: {text}\nTopic:")
ANSWERS = dict(prompt="Question:{text}\nAnswer:")
CHOICE = dict(family="choice", label_style="remap", **ANSWERS)
GRADE_SCHOOL = dict(
    family="numbers",
    max_tokens=200,
    parse=answers.number,
    same=answers.same_number,
    read_row=solved("question", "answer"),
    **ANSWERS,
)

TASK_LIST = (
    Task(
        "sst2",
        hub=Hub("stanfordnlp/sst2", test="validation"),  # the hub's test split has no labels
        read_row=classified("sentence", FEELINGS, FEELINGS),
        **SENTIMENT,
    ),
    Task(
        "finsen",
        read_row=classified("sentence", FINANCE, FEELINGS),
        hub=Hub(
            "takala/financial_phrasebank", files="sentences_50agree/train/*.parquet", test="train"
        ),
        **SENTIMENT,
    ),
    Task(
        "poems",
        read_row=classified("verse_text", POEMS, FEELINGS),
        hub=Hub("google-research-datasets/poem_sentiment", files="default/{split}/*.parquet"),
        **SENTIMENT,
    ),
    Task("movies", snippets="movieReviewSnippets_GroundTruth.txt", read_row=rated, **SENTIMENT),
    Task("amazon", snippets="amazonReviewSnippets_GroundTruth.txt", read_row=rated, **SENTIMENT),
    Task("nyt", snippets="nytEditorialSnippets_GroundTruth.txt", read_row=rated, **SENTIMENT),
    Task("tweets", snippets="tweets_GroundTruth.txt", read_row=rated, **SENTIMENT),
    Task("agnews", hub=Hub("fancyzhx/ag_news"), read_row=classified("text", NEWS, NEWS), **TOPICS),
    Task(
        "bbcnews",
        hub=Hub("SetFit/bbc-news"),
        read_row=classified("text", NEWS_OF_BBC, NEWS, limit=256),
        **TOPICS,
    ),
    Task(
        "strategytf",
        hub=Hub("wics/strategy-qa", files="strategyQA/test/*.parquet", train="test"),
        folder="strategyqa",
        family="truth",
        labels=("false", "true"),
        label_style="digits",  # as the authors ask it
        read_row=true_or_false,
        **ANSWERS,
    ),
    Task(
        "sciq-mc",
        hub=Hub("allenai/sciq"),
        folder="sciq",
        labels=CHOICE_LABELS[:4],
        read_row=sciq_options,
        **CHOICE,
    ),
    Task(
        "qasc",
        hub=Hub("allenai/qasc", test="validation"),  # the hub's test split has no answers
        labels=CHOICE_LABELS,
        read_row=lettered(8),
        **CHOICE,
    ),
    Task(
        "arc",
        hub=Hub("allenai/ai2_arc", "ARC-Challenge"),
        labels=CHOICE_LABELS[:4],
        read_row=lettered(4),
        **CHOICE,
    ),
    Task(
        "sciq",
        hub=Hub("allenai/sciq"),
        family="science",
        read_row=sciq_text,
        max_tokens=200,
        parse=answers.after_hashes,
        same=answers.same_words,
        **ANSWERS,
    ),
    Task("gsm8k", hub=Hub("openai/gsm8k", "main"), **GRADE_SCHOOL),
    Task("gsm8ks", hub=Hub("apple/GSM-Symbolic", "main", train="test"), **GRADE_SCHOOL),
    Task(
        "hmath-algebra",
        hub=Hub("EleutherAI/hendrycks_math", "algebra"),
        folder="hmath_algebra",
        family="algebra",
        read_row=solved("problem", "solution"),
        max_tokens=200,
        parse=formulas.final_formula,
        same=formulas.same_formula,
        **ANSWERS,
    ),
)
TASKS = {task.name: task for task in TASK_LIST}
STAND_INS = {"sst2": "movies"}  # what a task falls back to, loudly, where no hub can be reached


def find_task(name: str) -> Task:
    """The task `name`, or the user's own in the folder `name`. Raises UserError for neither."""
    if name in TASKS:
        return TASKS[name]
    if Path(name).is_dir():
        path = Path(name).resolve()
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        return Task(
            f"{shown.as_posix()}/",
            family="own",
            read_row=own.read_row,
            folder=str(path),
            prompt="{text}",
        )
    raise UserError(
        f"unknown dataset {name!r}{suggest(name, TASKS)}; use one of {', '.join(TASKS)}, or a "
        "folder with train.jsonl and test.jsonl"
    )


def check_pair(train: Task, test: Task) -> None:
    """Raise UserError unless a model that is trained on `train` can be tested on `test`."""
    shared = min(len(train.labels), len(test.labels))
    if train.labels and test.labels and train.labels[:shared] == test.labels[:shared]:
        return
    if not train.labels and not test.labels and train.family == test.family:
        return
    answers_of_train = ", ".join(train.labels) or f"free text ({train.family})"
    answers_of_test = ", ".join(test.labels) or f"free text ({test.family})"
    raise UserError(
        f"a model trained on {train.name} cannot be tested on {test.name}: the answers of the "
        f"first are {answers_of_train}, those of the second {answers_of_test}; choose a task with "
        "the same"
    )


# ---- reading -------------------------------------------------------------------------------------


def read_task(task: Task, data_dir: str | Path | None = None) -> TaskRows:
    """The task's items from its own folder, `data_dir`, the bundled snippets or the hub.

    Raises UserError that names the place of a bad row, NoHub where there is no way to the rows.
    """
    rows = read_rows(task, data_dir)
    items = {}
    for part in readers.PARTS:
        items[part] = []
        for line, row in rows.parts[part]:
            try:
                item = task.read_row(row)
            except BadRow as error:
                raise UserError(
                    f"{rows.places[part]}, line {line}: {error}; fix the row or leave it out"
                ) from None
            if item is not None:
                items[part].append(item)
    if task.family == "own":
        task, items = understand(task, rows, items)
    return TaskRows(task, items["train"], items["test"], rows.source)


def read_rows(task: Task, data_dir: str | Path | None) -> readers.Rows:
    """The rows of a task, split into a training and a test part."""
    if task.family == "own":
        return readers.read_folder(Path(task.folder))
    if task.snippets:
        return split(readers.read_snippets(task.snippets))
    if data_dir:
        return readers.read_folder(Path(data_dir, task.folder or task.name))
    without_hub = [other.name for other in TASK_LIST if other.snippets]
    rows = readers.read_hub(task.name, task.hub, without_hub)
    if task.hub.train == task.hub.test:
        return split(rows)
    return rows


def split(rows: readers.Rows) -> readers.Rows:
    """Rows in one piece, cut in two: a third of them, at most 1000, is the test part."""
    whole = list(rows.parts["train"])
    random.Random("split").shuffle(whole)
    size = min(1000, len(whole) // 3)
    return replace(rows, parts={"train": whole[size:], "test": whole[:size]})


def understand(
    task: Task, rows: readers.Rows, items: dict[str, list[Item]]
) -> tuple[Task, dict[str, list[Item]]]:
    """A user's own task once its rows are known: a label task, or free text."""
    found = own.understand(rows, items)
    if not found.labels:
        log(f"{task.name} is free text, compared as a whole")
        return replace(task, max_tokens=200), found.items
    log(f"{task.name} is a label task: {', '.join(found.labels)}")
    numbers = all(own.is_number(label) for label in found.labels)
    style = "digits" if numbers else "words"
    return replace(task, labels=found.labels, label_style=style), found.items
