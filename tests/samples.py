"""Sentences of our own in the fields of the hub's data sets, to run every task without a hub.

    folder(path) writes DIR/<name>/{train,test}.jsonl, the layout of --data-dir
    ROWS[name](k) is row k of a data set; row numbers give different texts
"""
import json
from pathlib import Path

GOOD = ("a warm and clever film", "the plot sparkles from start to end", "every song made us smile",
        "the actors are a joy to watch", "a tender story told with care", "bright funny and kind")
BAD = ("a dull and noisy film", "the plot falls apart at once", "every scene made us yawn",
       "the actors look lost and tired", "a cold story told without care", "loud slow and empty")
NEWS = ("The council met to sign a treaty between two countries",
        "The striker scored twice in the final match",
        "Shares of the bank rose after its profit report", "The new chip makes computers faster")


def opinion(k):
    return f"{(BAD, GOOD)[k % 2][k // 2 % 6]} , part {k // 2}"


def options(k, count):
    return {"text": [f"thing {k + place}" for place in range(count)], "label": list("ABCDEFGH"[:count])}


ROWS = {
    "sst2": lambda k: {"idx": k, "sentence": opinion(k), "label": k % 2},
    "finsen": lambda k: {"sentence": f"Profit {('fell', 'was flat', 'rose')[k % 3]} by {k} percent .",
                         "label": k % 3},
    "poems": lambda k: {"id": k, "verse_text": opinion(k), "label": k % 2 if k % 5 else 2},
    "agnews": lambda k: {"text": f"{NEWS[k % 4]}, report {k}", "label": k % 4},
    "bbcnews": lambda k: {"text": f"{NEWS[(3, 2, 1, 0, 0)[k % 5]].lower()}  story {k} "
                          + "more words follow " * 30,
                          "label": k % 5,
                          "label_text": ("tech", "business", "sport", "entertainment", "politics")[k % 5]},
    "strategyqa": lambda k: {"qid": f"q{k}", "term": "x", "description": "y",
                             "question": f"Is {k} an even number?",
                             "answer": k % 2 == 0, "facts": [], "decomposition": []},
    "sciq": lambda k: {"question": f"What do you get from {k} plus 1?", "distractor1": f"{k}",
                       "distractor2": f"{k + 7}",
                       "distractor3": f"{k + 9}", "correct_answer": f"{k + 1}",
                       "support": f"One more than {k} is {k + 1}."},
    "qasc": lambda k: {"id": f"t{k}", "question": f"Which is thing {k + k % 8}?", "choices": options(k, 8),
                       "answerKey": "ABCDEFGH"[k % 8], "fact1": "a", "fact2": "b", "combinedfact": "c",
                       "formatted_question": "d"},
    "arc": lambda k: {"id": f"t{k}", "question": f"Which is thing {k + k % 4}?", "choices": options(k, 4),
                      "answerKey": "ABCD"[k % 4]},
    "gsm8k": lambda k: {"question": f"Ann has {k} pens and buys {k + 2}. How many has she?",
                        "answer": f"She has {k} + {k + 2} = <<{k}+{k + 2}={2 * k + 2}>>{2 * k + 2} pens.\n"
                                  f"#### {2 * k + 2}"},
    "gsm8ks": lambda k: {"id": k, "instance": 0, "question": f"Bo has {k} cups and loses 1. How many has he?",
                         "answer": f"He has {k} - 1 = {k - 1}.\n#### {k - 1}", "original_id": 1,
                         "original_question": "", "original_answer": "", "canary": "x"},
    "hmath_algebra": lambda k: {"problem": f"Solve $x = {k} + 1$.", "level": "Level 1", "type": "Algebra",
                                "solution": f"We add: $x = \\boxed{{{k + 1}}}$."},
}


def folder(path, train=24, test=8):
    """Write every data set under `path` and return it."""
    for name, row in ROWS.items():
        (Path(path) / name).mkdir(parents=True)
        for part, numbers in (("train", range(train)), ("test", range(100, 100 + test))):
            lines = "".join(json.dumps(row(k)) + "\n" for k in numbers)
            (Path(path) / name / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    return path


def row(**changes):
    """A line of a results file, as far as tables, figures and claims read it."""
    return {"method": "sft", "model": "m", "dataset": "d", "source": "s", "labels": "words", "balanced": True,
            "n": 4, "set": 0,
            "lr": 1e-3, "eval_dataset": "d", "accuracy": 0.5, "ece": 0.1, "asim": 0.3, "dev_loss": 1.0,
            "test": 10, "bins": 15,
            "test_data": "t", "run": "r", **changes}
