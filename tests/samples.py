"""Sentences of our own in the fields of the hub's data sets, to run every task without a hub.

folder(path)   writes DIR/<name>/{train,test}.jsonl, the layout of --data-dir
ROWS[name](k)  row k of a data set; different numbers give different texts
row(...)       a line of a results file
"""

import json
from pathlib import Path

GOOD = (
    "a warm and clever film",
    "the plot sparkles from start to end",
    "every song made us smile",
    "the actors are a joy to watch",
    "a tender story told with care",
    "bright funny and kind",
)
BAD = (
    "a dull and noisy film",
    "the plot falls apart at once",
    "every scene made us yawn",
    "the actors look lost and tired",
    "a cold story told without care",
    "loud slow and empty",
)
NEWS = (
    "The council met to sign a treaty between two countries",
    "The striker scored twice in the final match",
    "Shares of the bank rose after its profit report",
    "The new chip makes computers faster",
)
LETTERS = "ABCDEFGH"


# ---- sentiment and topics ------------------------------------------------------------------------


def opinion(k):
    """A bad and a good one in turns."""
    sentences = (BAD, GOOD)[k % 2]
    return f"{sentences[k // 2 % 6]} , part {k // 2}"


def sst2(k):
    return {"idx": k, "sentence": opinion(k), "label": k % 2}


def finsen(k):
    verb = ("fell", "was flat", "rose")[k % 3]
    return {"sentence": f"Profit {verb} by {k} percent .", "label": k % 3}


def poems(k):
    mixed = k % 5 == 0
    return {"id": k, "verse_text": opinion(k), "label": 2 if mixed else k % 2}


def agnews(k):
    return {"text": f"{NEWS[k % 4]}, report {k}", "label": k % 4}


def bbcnews(k):
    """A long text, with two spaces to close up; labels in the order of the hub's data set."""
    start = NEWS[(3, 2, 1, 0, 0)[k % 5]].lower()
    names = ("tech", "business", "sport", "entertainment", "politics")
    return {
        "text": f"{start}  story {k} " + "more words follow " * 30,
        "label": k % 5,
        "label_text": names[k % 5],
    }


# ---- true or false, and multiple choice ----------------------------------------------------------


def strategyqa(k):
    return {
        "qid": f"q{k}",
        "term": "x",
        "description": "y",
        "question": f"Is {k} an even number?",
        "answer": k % 2 == 0,
        "facts": [],
        "decomposition": [],
    }


def options(k, count):
    """`count` options with letters; option i is the thing k + i."""
    things = [f"thing {k + i}" for i in range(count)]
    return {"text": things, "label": list(LETTERS[:count])}


def qasc(k):
    return {
        "id": f"t{k}",
        "question": f"Which is thing {k + k % 8}?",
        "choices": options(k, 8),
        "answerKey": LETTERS[k % 8],
        "fact1": "a",
        "fact2": "b",
        "combinedfact": "c",
        "formatted_question": "d",
    }


def arc(k):
    return {
        "id": f"t{k}",
        "question": f"Which is thing {k + k % 4}?",
        "choices": options(k, 4),
        "answerKey": LETTERS[k % 4],
    }


def sciq(k):
    return {
        "question": f"What do you get from {k} plus 1?",
        "distractor1": f"{k}",
        "distractor2": f"{k + 7}",
        "distractor3": f"{k + 9}",
        "correct_answer": f"{k + 1}",
        "support": f"One more than {k} is {k + 1}.",
    }


# ---- worked solutions ----------------------------------------------------------------------------


def gsm8k(k):
    total = 2 * k + 2
    return {
        "question": f"Ann has {k} pens and buys {k + 2}. How many has she?",
        "answer": f"She has {k} + {k + 2} = <<{k}+{k + 2}={total}>>{total} pens.\n#### {total}",
    }


def gsm8ks(k):
    return {
        "id": k,
        "instance": 0,
        "question": f"Bo has {k} cups and loses 1. How many has he?",
        "answer": f"He has {k} - 1 = {k - 1}.\n#### {k - 1}",
        "original_id": 1,
        "original_question": "",
        "original_answer": "",
        "canary": "x",
    }


def hmath_algebra(k):
    return {
        "problem": f"Solve $x = {k} + 1$.",
        "level": "Level 1",
        "type": "Algebra",
        "solution": f"We add: $x = \\boxed{{{k + 1}}}$.",
    }


ROWS = {
    "sst2": sst2,
    "finsen": finsen,
    "poems": poems,
    "agnews": agnews,
    "bbcnews": bbcnews,
    "strategyqa": strategyqa,
    "sciq": sciq,
    "qasc": qasc,
    "arc": arc,
    "gsm8k": gsm8k,
    "gsm8ks": gsm8ks,
    "hmath_algebra": hmath_algebra,
}


# ---- files ---------------------------------------------------------------------------------------


def write_lines(path, rows):
    """Write rows as JSON lines; a row that is a text is written as it is."""
    lines = []
    for each in rows:
        lines.append(each if isinstance(each, str) else json.dumps(each, ensure_ascii=False))
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def folder(path, train=24, test=8):
    """Write every data set under `path` and return it."""
    for name, row_of in ROWS.items():
        home = Path(path) / name
        home.mkdir(parents=True)
        write_lines(home / "train.jsonl", [row_of(k) for k in range(train)])
        write_lines(home / "test.jsonl", [row_of(k) for k in range(100, 100 + test)])
    return path


def row(**changes):
    """A line of a results file, as far as tables, figures and claims read it."""
    return {
        "method": "sft",
        "model": "m",
        "dataset": "d",
        "source": "s",
        "labels": "words",
        "balanced": True,
        "n": 4,
        "set": 0,
        "lr": 1e-3,
        "eval_dataset": "d",
        "accuracy": 0.5,
        "accuracy_among_labels": 0.5,
        "nll": 0.8,
        "brier": 0.5,
        "gap": 0.1,
        "ece": 0.1,
        "ece_floor": 0.05,
        "ece_floor_sd": 0.01,
        "asim": 0.3,
        "dev_loss": 1.0,
        "test": 10,
        "test_data": "t",
        "run": "r",
        **changes,
    }
