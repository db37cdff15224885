"""The paper's comparison on the bundled model, once more: one command, a few hours on two cores, no GPU.

    python reproduce.py                      all of it into results/; what is there already is not run again
    python reproduce.py --only teacher       one part of it
    python reproduce.py --data-dir DIR       sst2 and finsen from local copies instead of the hub

Parts, in this order:
"""
import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import data
import ia2
import model as base
import options
import results

RATES = "--lr 1e-4 3e-4 1e-3"
MOVIES = "--dataset movies --eval movies amazon tweets --sets 5"
SWEEP = f"{MOVIES} {RATES} --out results/movies"
PARTS = {  # name: (what it is, the options of ia2.py)
    "teacher": ("wordings and ways to draw sets, by ICL's accuracy on training data", None),
    "n4": ("nine methods at n = 4", f"{SWEEP} --n 4 --methods {' '.join(ia2.METHODS)}"),
    "more": ("the five main methods at n = 2, 8, 16", f"{SWEEP} --n 2 8 16"),
    "longer": ("n = 4 with up to 200 epochs a stage: is what fails only IA2 stopped too early?",
               f"{MOVIES} --lr 1e-3 --max-epochs 200 --out results/longer"),
    "paper": ("the paper's own setting: Text:/Label:, digits, random sets",
              f"--dataset movies --labels digits --no-balanced --sets 5 {RATES} --out results/paper_setting"),
    "real": ("SST-2 and Financial PhraseBank", f"--dataset sst2 --eval sst2 finsen --sets 5 {RATES} --out results/sst2"),
}
SETTINGS = [  # (wording, labels, balanced)
    ("Text:/Label:", "digits", False), ("Text:/Label:", "words", False), ("Text:/Label:", "words", True),
    ("Review:/Sentiment:", "words", False), ("Review:/Sentiment:", "words", True),
]


def compare_teachers(path, sets=5, numbers=(2, 4, 8, 16), queries=60):
    """Write one line a setting and n: how good a teacher ICL is, for each few-shot set. The test part is not read.

    accuracy and largest_share (of its commonest answer): with all n demos, on training texts outside the set.
    leave_one_out: how often it is right on the training examples themselves, with the other n - 1 as demos, which is
    what IA2's targets are made of. Lines that are there already are kept.
    """
    model, tokenizer = base.load_model("smollm2-135m", base.pick_device("auto")), base.load_tokenizer("smollm2-135m")
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(row["wording"], row["labels"], row["balanced"], row["n"]) for row in rows}
    for wording, labels, balanced in SETTINGS:
        task = data.load("movies", plain=wording.startswith("Review"), style=labels)
        tokens = base.label_tokens(tokenizer, task.label_texts)
        for n in numbers:
            if (wording, labels, balanced, n) in known:
                continue
            found, start = [], time.perf_counter()
            for number in range(sets):
                few_shot = data.few_shot_set(task.pool, n, number, balanced=balanced)
                used = {example.query for example in few_shot.train + few_shot.dev}
                rest = [example for example in task.pool if example.query not in used]
                exam = ia2.Exam(task.task, random.Random(f"teacher-{number}").sample(rest, queries), tokens, 1)
                scores, = ia2.evaluate(model, tokenizer, exam, demos=few_shot.train)
                targets, _ = ia2.few_shot_targets(model, tokenizer, few_shot)
                right = statistics.fmean(target.icl == target.gold for target in targets)
                found.append((scores["accuracy"], scores["largest_share"], right))
            accuracies, shares, lone = zip(*found)
            rows.append({"wording": wording, "labels": labels, "balanced": balanced, "n": n, "sets": sets, "queries": queries,
                         "accuracy": accuracies, "largest_share": shares, "leave_one_out": lone,
                         "command": "python reproduce.py --only teacher"})
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
            partial.replace(path)
            print(f"{wording} {labels} {'balanced' if balanced else 'random'} n={n}: {time.perf_counter() - start:.0f} s",
                  file=sys.stderr, flush=True)


def teacher_table(path):
    """The comparison as a Markdown table: accuracy of ICL with n demos / on the set itself, leaving one out."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    numbers = sorted({row["n"] for row in rows})
    lines = [["wording", "labels", "sets", *(f"n = {n}" for n in numbers)]]
    for wording, labels, balanced in SETTINGS:
        found = {row["n"]: row for row in rows if (row["wording"], row["labels"], row["balanced"]) == (wording, labels, balanced)}
        lines.append([wording, labels, "balanced" if balanced else "random", *(
            f"{100 * statistics.fmean(found[n]['accuracy']):.0f}% / {100 * statistics.fmean(found[n]['leave_one_out']):.0f}%"
            if n in found else "-" for n in numbers)])
    return results.markdown(lines)


def main():
    parser = options.Parser(prog="reproduce.py", formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
                            description=__doc__ + "\n".join(f"    {name:10}{what}" for name, (what, _) in PARTS.items()))
    parser.add_argument("--only", type=options.one_of(tuple(PARTS)), metavar="PART", help="one part")
    parser.add_argument("--data-dir", metavar="DIR", help="local copies of sst2 and finsen")
    settings = parser.parse_args()
    for name, (what, words) in PARTS.items():
        if settings.only not in (None, name):
            continue
        print(f"--- {name}: {what}", file=sys.stderr, flush=True)
        if words is None:
            path = Path("results", "teacher.jsonl")
            compare_teachers(path)
            print(teacher_table(path))
            continue
        local = ["--data-dir", settings.data_dir] if settings.data_dir and name == "real" else []
        for command in ([*words.split(), *local], ["--report", f"{words.split('--out ')[1].split()[0]}/results.jsonl"]):
            code = subprocess.run([sys.executable, "ia2.py", *command], stdout=subprocess.DEVNULL, check=False).returncode
            if code:
                return code
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except base.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
