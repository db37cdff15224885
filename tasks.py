"""The benchmarks, each a small entry: where its rows are, how a row becomes an item, its labels, prompts and parser.

To add one, write a function that turns a row into an `Item` (or None, to leave the row out) and an entry in `TASKS`.
"""
import random
from dataclasses import dataclass
from typing import Callable

import answers

CHOICE_LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven")


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
    folder: str | None = None          # its name under --data-dir, where it is not the task's own
    snippets: str | None = None        # its file among the bundled rated snippets
    prompt: str = "Text:{text}\nLabel:"    # the paper's wording
    plain_prompt: str | None = None        # a wording that small models follow better
    label_style: str | None = None         # digits, words or remap, where the task and not the model decides
    max_tokens: int = 1                    # G: response tokens at most, EOS included
    parse: Callable[[str], object] = str.strip       # free text -> the answer in it
    same: Callable[[object, object], bool] = answers.same_text


class BadRow(Exception):
    """What is wrong with one row; the reader adds where it stands."""


def field(row, name, kind=str):
    """The field `name` of a row, checked; `kind` is a type."""
    value = row.get(name) if isinstance(row, dict) else None
    if value is None or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        have = f"it has {', '.join(map(str, row))}" if isinstance(row, dict) else "it is no JSON object"
        raise BadRow(f"the row has no field {name!r} of type {kind.__name__} ({have})")
    return value


# ---- rows of the hub's data sets -> items ---------------------------------------------------------------------


def classified(text_field, names, labels, limit=None):
    """Rows with a text and a numbered label. `names[number]` is the label's name, None for rows to leave out."""
    def read(row):
        text, number = " ".join(field(row, text_field).split()), field(row, "label", int)
        if not 0 <= number < len(names):
            raise BadRow(f"the label {number} is unknown (known: 0 to {len(names) - 1})")
        if limit and len(text) > limit:
            text = text[:limit + 1].rpartition(" ")[0] or text[:limit]
        return None if names[number] is None else Item(text, labels.index(names[number]))
    return read


def true_or_false(row):
    return Item(field(row, "question").strip(), int(field(row, "answer", bool)))


def with_options(question, options, label):
    lines = [f"[{number}]{option}" for number, option in enumerate(options)]
    return Item("\n".join([f"{question.strip()}", "Choices:", *lines]), label)


def lettered(count):
    """Multiple choice with `choices: {text, label}` and `answerKey`; rows with another number of options are left out."""
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
    return with_options(row["question"], [options[place] for place in order], order.index(0))


def sciq_text(row):
    answer = f"{field(row, 'support').strip()}\n#### {field(row, 'correct_answer').strip()}"
    return Item(field(row, "question").strip(), answer=answer.strip())


def solved(question_field, answer_field):
    return lambda row: Item(field(row, question_field).strip(), answer=field(row, answer_field).strip())


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
CONVERTED = "refs/convert/parquet"  # the hub's own conversion, where a repository still holds a loading script

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
         parse=answers.after_hashes, same=answers.same_text, **ANSWERS),
    Task("gsm8k", hub=Hub("openai/gsm8k", "main"), **GRADE_SCHOOL),
    Task("gsm8ks", hub=Hub("apple/GSM-Symbolic", "main", train="test"), **GRADE_SCHOOL),
    Task("hmath-algebra", hub=Hub("EleutherAI/hendrycks_math", "algebra"), folder="hmath_algebra", family="algebra",
         read_row=solved("problem", "solution"), max_tokens=200, parse=answers.latex, same=answers.same_latex,
         **ANSWERS),
)}
STAND_INS = {"sst2": "movies"}  # what a task falls back to, loudly, where no hub can be reached
