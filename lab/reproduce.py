"""The paper's comparison on the bundled model, once more: one command, about 8 hours on two cores, no GPU.

    python reproduce.py                      all of it into reproduced/; what is there already is not run again
    python reproduce.py --only teacher       one part of it
    python reproduce.py --data-dir DIR       sst2 and finsen from local copies instead of the hub
    python reproduce.py --out results        what comes with the code: its tables, without running anything again

Parts, in this order:
"""
import argparse
import dataclasses
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import data
import ia2
import lab
import lora
import metrics
import model as base
import options
import results

RATES = "--lr 1e-4 3e-4 1e-3"
MOVIES = "--dataset movies --eval movies amazon tweets --sets 5"
SWEEPS = {  # name: (what it is, its folder, the options of ia2.py)
    "n4": ("nine methods at n = 4", "movies", f"{MOVIES} {RATES} --n 4 --methods {' '.join(ia2.METHODS)}"),
    "more": ("the five main methods at n = 2, 8, 16", "movies", f"{MOVIES} {RATES} --n 2 8 16"),
    "longer": ("n = 4 with up to 200 epochs a stage: is what fails only IA2 stopped too early?", "longer",
               f"{MOVIES} --lr 1e-3 --max-epochs 200"),
    "each": ("n = 4 with targets from demos that stay balanced: is it leaving one out that misleads?", "leave_out_each",
             f"{MOVIES} {RATES} --leave-out each"),
    "paper": ("the paper's own setting: Text:/Label:, digits, random sets", "paper_setting",
              f"--dataset movies --labels digits --no-balanced --sets 5 {RATES}"),
    "real": ("SST-2 and Financial PhraseBank", "sst2", f"--dataset sst2 --eval sst2 finsen --sets 5 {RATES}"),
}
ANALYSES = {"teacher": "wordings and ways to draw sets, by ICL's accuracy on training data",
            "overlap": "what updates of the same few-shot set share, beside those of different sets"}
PARTS = {"teacher": ANALYSES["teacher"], **{name: what for name, (what, *_) in SWEEPS.items()}, "overlap": ANALYSES["overlap"]}
SETTINGS = [  # (wording, labels, balanced)
    ("Text:/Label:", "digits", False), ("Text:/Label:", "words", False), ("Text:/Label:", "words", True),
    ("Review:/Sentiment:", "words", False), ("Review:/Sentiment:", "words", True),
]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(path, rows):
    """Rows as lines of JSON, in one step: a reader finds the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    partial.replace(path)


def share_of_right_targets(model, tokenizer, few_shot, each=False):
    """How often ICL's answer to a training example, which its target holds, is the true one."""
    targets, _ = ia2.few_shot_targets(model, tokenizer, dataclasses.replace(few_shot, dev=[]), each=each)
    return statistics.fmean(target.icl == target.gold for target in targets)


def compare_teachers(path, sets=5, numbers=(2, 4, 8, 16), queries=60):
    """Write one line a setting and n: how good a teacher ICL is, for each few-shot set. The test part is not read.

    accuracy and largest_share (of its commonest answer): with all n demos, on training texts outside the set.
    leave_one_out: how often it is right on the training examples themselves, with the other n - 1 as demos, which is what
    IA2's targets are made of; leave_out_each: the same with --leave-out each, where that is possible. Lines that are there
    already are kept.
    """
    rows = read(path)
    known = {(row["wording"], row["labels"], row["balanced"], row["n"]) for row in rows}
    due = [(*setting, n) for setting in SETTINGS for n in numbers if (*setting, n) not in known]
    if due:
        model, tokenizer = base.load_model("smollm2-135m", base.pick_device("auto")), base.load_tokenizer("smollm2-135m")
    for wording, labels, balanced, n in due:
        found, start = [], time.perf_counter()
        task = data.load("movies", plain=wording.startswith("Review"), style=labels)
        tokens = base.label_tokens(tokenizer, task.label_texts)
        for number in range(sets):
            few_shot = data.few_shot_set(task.pool, n, number, balanced=balanced)
            used = {example.query for example in few_shot.train + few_shot.dev}
            rest = [example for example in task.pool if example.query not in used]
            exam = ia2.Exam(task.task, random.Random(f"teacher-{number}").sample(rest, queries), tokens, 1)
            scores, = ia2.evaluate(model, tokenizer, exam, demos=few_shot.train)
            found.append({"accuracy": scores["accuracy"], "largest_share": scores["largest_share"],
                          "leave_one_out": share_of_right_targets(model, tokenizer, few_shot)})
            if balanced and n > 2:
                found[-1]["leave_out_each"] = share_of_right_targets(model, tokenizer, few_shot, each=True)
        rows.append({"wording": wording, "labels": labels, "balanced": balanced, "n": n, "sets": sets, "queries": queries,
                     **{figure: [of_set[figure] for of_set in found] for figure in found[0]},
                     "command": "python reproduce.py --only teacher"})
        write(path, rows)
        print(f"{wording} {labels} {'balanced' if balanced else 'random'} n={n}: {time.perf_counter() - start:.0f} s",
              file=sys.stderr, flush=True)


def teacher_table(path):
    """The comparison as a Markdown table: accuracy of ICL with n demos / on the set itself, leaving one out / one of each."""
    rows = read(path)
    numbers = sorted({row["n"] for row in rows})
    lines = [["wording", "labels", "sets", *(f"n = {n}" for n in numbers)]]
    for wording, labels, balanced in SETTINGS:
        found = {row["n"]: row for row in rows if (row["wording"], row["labels"], row["balanced"]) == (wording, labels, balanced)}
        figures = {n: [100 * statistics.fmean(row[key]) for key in ("accuracy", "leave_one_out", "leave_out_each") if key in row]
                   for n, row in found.items()}
        lines.append([wording, labels, "balanced" if balanced else "random", *(
            " / ".join(f"{figure:.0f}%" for figure in figures[n]) if n in found else "-" for n in numbers)])
    return results.markdown(lines)


def compare_updates(path, sweep):
    """Write one line a pair of methods: the overlap of their updates at n = 4, of the same few-shot set and of different ones.

    Means over layers, modules, sets and learning rates; both updates of a pair have the same rate. Those of the same set start
    from the same A and see the same data, those of different sets share neither: what they have in common belongs to the
    model, not to the examples. The adapters lie beside the rows in the folder `sweep`. Raises UserError if there are none.
    """
    rows = [row for row in results.read(sweep / "results.jsonl") if row["n"] == 4 and row["method"] in lab.OVERLAPPING]
    if not rows:
        raise base.UserError(f"there are no adapters in {sweep} yet; run the part n4 first")
    updates = {(row["method"], row["set"], row["lr"]): {name: B for name, (_, B) in lora.read(sweep / row["run"])[0].items()}
               for row in rows}
    found = {}
    for first, second in itertools.combinations(sorted(updates, key=lambda run: (lab.OVERLAPPING.index(run[0]), run)), 2):
        if first[2] == second[2]:
            shared = statistics.fmean(metrics.subspace_overlap(B, updates[second][name]) for name, B in updates[first].items())
            found.setdefault((first[0], second[0]), {}).setdefault(first[1] == second[1], []).append(shared)
    chance = statistics.fmean(B.shape[1] / B.shape[0] for B in updates[first].values())
    mean = lambda values: statistics.fmean(values) if values else None
    write(path, [{"methods": methods, "same_set": mean(by_set.get(True)), "other_set": mean(by_set.get(False)), "chance": chance,
                  "command": "python reproduce.py --only overlap"} for methods, by_set in found.items()])


def update_table(path):
    """What updates share, as a Markdown table."""
    percent = lambda value: "-" if value is None else f"{100 * value:.1f}%"
    return results.markdown([["updates of", "the same set", "different sets", "chance"], *(
        [" and ".join(row["methods"]), *map(percent, (row["same_set"], row["other_set"], row["chance"]))] for row in read(path))])


def analyse(name, out):
    """Run one of ANALYSES, or print what is there of it already."""
    path = out / f"{name}.jsonl"
    if name == "teacher":
        compare_teachers(path)
        print(teacher_table(path))
    else:
        if not path.exists():
            compare_updates(path, out / "movies")
        print(update_table(path))


def main():
    parser = options.Parser(prog="reproduce.py", formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
                            description=__doc__ + "\n".join(f"    {name:10}{what}" for name, what in PARTS.items()))
    parser.add_argument("--only", type=options.one_of(tuple(PARTS)), metavar="PART", help="one part")
    parser.add_argument("--data-dir", metavar="DIR", help="local copies of sst2 and finsen")
    parser.add_argument("--out", type=Path, default=Path("reproduced"), metavar="DIR", help="where it goes (default reproduced)")
    settings = parser.parse_args()
    for name, what in PARTS.items():
        if settings.only not in (None, name):
            continue
        print(f"--- {name}: {what}", file=sys.stderr, flush=True)
        if name in ANALYSES:
            analyse(name, settings.out)
            continue
        _, folder, words = SWEEPS[name]
        local = ["--data-dir", settings.data_dir] if settings.data_dir and name == "real" else []
        place = str(settings.out / folder)
        for command in ([*words.split(), *local, "--out", place], ["--report", f"{place}/results.jsonl"]):
            code = subprocess.run([sys.executable, "ia2.py", *command], stdout=subprocess.DEVNULL, check=False).returncode
            if code:
                return code
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (base.UserError, lora.LoRAError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
