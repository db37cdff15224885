"""docs/ia2.html, the page to play with, written from committed records; nothing is run.

python -m lab.page             writes the page from results/page.json and rows in results/
python -m lab.page --record    trains the lesson's model once, for a new results/page.json
"""

import html
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev, pvariance

import data
import lora
from lab import cells, comparisons, diagnostics, page_record
from lab import rows as result_rows
from support import cli, records

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "results" / "page.json"
TEMPLATE = ROOT / "lab" / "page.html"
PAGE = ROOT / "docs" / "ia2.html"
# Rows of the few-shot sets, in folders of results/: of the model above, then of the larger one.
SAME_MODEL = ("primers",)
LARGER = ("headline",)
FORMER = ("qwen2.5-coder-1.5b-sst2", "qwen2.5-coder-1.5b-movies")  # where those are not there
NAMES = {  # in the order of the table
    "base": "base",
    "sft": "SFT",
    "ia2": "IA2",
    "ia2-sft": "IA2 then SFT",
    "steer": "steer",
    "icl": "ICL",
}
MODEL_NAMES = {
    "qwen2.5-coder-0.5b": "Qwen2.5-Coder-0.5B-Instruct (4-bit weights read back into float32)",
    "qwen2.5-coder-1.5b": "Qwen2.5-Coder-1.5B-Instruct (4-bit weights read back into bfloat16)",
}
SIZES = {"qwen2.5-coder-0.5b": "0.5B", "qwen2.5-coder-1.5b": "1.5B"}
IN_PAGE = ("layers", "variance", "unit", "answers", "queries", "methods")  # of the record

# ---- 1. Few-shot sets ----------------------------------------------------------------------------


def few_shot_rows() -> list[dict]:
    """The committed rows of both models at n = 4 and the planned rate: the newest there are, of
    sets that have SFT and IA2 then SFT.
    """
    rows = committed_rows(SAME_MODEL) + (committed_rows(LARGER) or committed_rows(FORMER))
    planned = [row for row in comparisons.planned(rows) if row["n"] == 4]
    at_plan = result_rows.at_rate(planned, comparisons.PLAN_RATE)
    result_rows.check_rows(at_plan)
    whole = []
    for same in result_rows.group(at_plan, ["model", "dataset", "eval_dataset", "set"]).values():
        if {"sft", "ia2-sft"} <= {row["method"] for row in same}:
            whole += same
    return whole


def committed_rows(folders: tuple[str, ...]) -> list[dict]:
    paths = [ROOT / "results" / name / "results.jsonl" for name in folders]
    return [row for path in paths for row in records.read_rows(path)]


def few_shot_tests(rows: list[dict]) -> list[dict]:
    """For each model and pair of training and test data what every few-shot set gave, in %."""
    tests = []
    pairs = result_rows.group(rows, ["model", "dataset", "eval_dataset"])
    for (model, trained, tested), same in pairs.items():
        by_set = comparisons.paired(same, "accuracy", "ia2-sft", "sft")
        tests.append(
            {
                "name": f"{SIZES[model]}: {task_name(trained)}, tested on {task_name(tested)}",
                "queries": same[0]["test"],
                "difference": cells.interval(by_set.values(), 100, 1, "+"),
                "sets": [one_set(each) for each in diagnostics.by_number(same).values()],
            }
        )
    return tests


def one_set(rows: list[dict]) -> dict:
    """The accuracies of a few-shot set in %, null where a method has no row."""
    found = {"set": rows[0]["set"], "labels": rows[0]["train_labels"]}
    accuracy = {row["method"]: round(100 * row["accuracy"], 1) for row in rows}
    for method in result_rows.MAIN_METHODS:
        found[method] = accuracy.get(method)
    return found


def task_name(name: str) -> str:
    return {"sst2": "SST-2", "finsen": "FinS", "poems": "Poem"}.get(name, name)


def between(values: list[float], size: int) -> float:
    """The share of the variance that lies between groups of `size` that follow each other."""
    means = []
    for start in range(0, len(values), size):
        group = values[start : start + size]
        means += [fmean(group)] * len(group)
    return pvariance(means) / pvariance(values)


def sets_text(rows: list[dict], recorded: str) -> str:
    """What these rows are, and of which procedure; `recorded` is the model of the record."""
    rate = cells.rate_text(comparisons.PLAN_RATE)
    sentences = [f"n = {rows[0]['n']}, the rate {rate} for every method."]
    for (model, labels), same in result_rows.group(rows, ["model", "labels"]).items():
        pairs = []
        for (trained,), of_task in result_rows.group(same, ["dataset"]).items():
            tests = dict.fromkeys(task_name(row["eval_dataset"]) for row in of_task)
            pairs.append(f"trained on {task_name(trained)} and tested on {' and '.join(tests)}")
        kind = "the model above" if model == recorded else MODEL_NAMES[model]
        sentences.append(
            f"{SIZES[model]} is {kind}, with {labels} as labels, {'; or '.join(pairs)}."
        )
        if comparisons.is_former(same[0]):
            sentences.append(
                f"The rows of {SIZES[model]} are of an earlier version of this code, the former "
                "procedure: one draw of test queries served all few-shot sets, and a stage could "
                "keep the adapter that it began with."
            )
    return " ".join(sentences)


def sets_note(rows: list[dict]) -> str:
    """Why base is so low, and the runs of IA2 then SFT whose SFT stage kept nothing."""
    sentences = []
    for (model,), same in result_rows.group(rows, ["model"]).items():
        base = [row["accuracy"] for row in same if row["method"] == "base"]
        if base and max(base) < 0.05 and same[0]["labels"] == "digits":
            sentences.append(
                f"Base of {SIZES[model]} is near 0% because its likeliest next token is no digit."
            )
    found = {}
    for row in rows:
        if row["method"] == "ia2-sft" and result_rows.has_kept_nothing(row):
            trained = f"{SIZES[row['model']]} on {task_name(row['dataset'])}"
            found.setdefault(trained, set()).add(row["set"])
    named = [f"set {', '.join(map(str, sorted(sets)))} of {name}" for name, sets in found.items()]
    if named:
        sentences.append(
            f"In {' and '.join(named)} the SFT stage kept nothing, so IA2 then SFT is IA2 there."
        )
    return " ".join(sentences)


# ---- 2. The page ---------------------------------------------------------------------------------


def page(record: dict, rows: list[dict], template: str) -> str:
    """The whole page as text."""
    tests = few_shot_tests(rows)
    small = {name: record[name] for name in IN_PAGE}
    parts = {
        **example_prompts(record),
        "message": message(record),
        "table": ends_table(record),
        "reading": reading(record),
        "total": str(len(record["queries"])),
        "layer": str(record["layer"]),
        "layers": str(record["layers"]),
        "layer_share": f"{record['layer_share']:.0%}",
        "sets_text": html.escape(sets_text(rows, record["model"])),
        "sets_note": html.escape(sets_note(rows)),
        "settings": html.escape(settings_text(record)),
        "data": page_record.json_text({**small, "sets": {"tests": tests}}).replace("</", "<\\/"),
    }
    return re.sub(r"@@(\w+)@@", lambda match: parts[match[1]], template)


def example_prompts(record: dict) -> dict[str, str]:
    """What teacher and student read of the first training example, as HTML."""
    labels = [record["answers"][number] for number in (0, 1)]
    query, *others = record["examples"]
    lines = []
    for example in others:
        asked = record["prompt"].format(text=example["text"])
        lines.append(html.escape(asked + labels[example["label"]]))
    asked = html.escape(record["prompt"].format(text=query["text"])) + " <b>▸</b>"
    return {"teacher": "\n\n".join([*lines, asked]), "student": asked}


@dataclass(frozen=True)
class End:
    """Where a method ends, over the queries."""

    right: int
    right_among_labels: int
    labelled: int
    way: float  # of the mean of the cloud from base (0) to ICL (1), along the first axis
    aside: float  # along the second axis, in the same unit
    asim: float
    centred: float


def end_of(record: dict, method: str) -> End:
    ends = {name: each["states"][-1] for name, each in record["methods"].items()}
    state = ends[method]
    base, icl, own = (fmean(ends[name]["x"]) for name in ("base", "icl", method))
    labels = [query["label"] for query in record["queries"]]
    among = [no < yes for no, yes in zip(*state["p"])]
    return End(
        right=sum(answer == label for answer, label in zip(state["answer"], labels)),
        right_among_labels=sum(answer == label for answer, label in zip(among, labels)),
        labelled=sum(answer < 2 for answer in state["answer"]),
        way=(own - base) / (icl - base),
        aside=(fmean(state["y"]) - fmean(ends["base"]["y"])) / (icl - base),
        asim=fmean(state["asim"]) / 1000,
        centred=fmean(state["centred"]) / 1000,
    )


def message(record: dict) -> str:
    """What the first view shows, in numbers, as HTML."""
    ends = {method: end_of(record, method) for method in NAMES}
    base, sft, ia2_end, both = (ends[method] for method in ("base", "sft", "ia2", "ia2-sft"))
    total = len(record["queries"])
    return (
        f"The marks below are {total} movie snippets that nothing is trained on. In this run, "
        f"training on {record['n']} others takes their cloud this far along the first axis from "
        f"base (hollow) to ICL (pale): SFT {percent(sft.way)}, IA2 {percent(ia2_end.way)}, IA2 "
        f"then SFT {percent(both.way)}. No example's own true answer is among IA2's targets; after "
        f"it the model answers with one of the labels in {ia2_end.labelled} of {total} queries, "
        f"base in {base.labelled}. The similarity to ICL, asim, is {base.asim:.2f} for base, "
        f"{sft.asim:.2f} for SFT, {ia2_end.asim:.2f} for IA2 and {both.asim:.2f} for IA2 then SFT. "
        f"SFT is right in {sft.right} of the queries, IA2 in {ia2_end.right}, IA2 then SFT in "
        f"{both.right}: one few-shot set cannot show which method is better. More are below."
    )


def percent(share: float) -> str:
    return f"{share:.0%}".replace("-", "−")


def html_table(heads: list[str], lines: list[list[str]]) -> str:
    """A table as HTML; the first cell of a line is its head."""
    rows = ["".join(f'<th scope="col">{head}</th>' for head in heads)]
    for first, *others in lines:
        numbers = "".join(f"<td>{cell}</td>" for cell in others)
        rows.append(f'<th scope="row">{first}</th>{numbers}')
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table>\n{body}\n</table>"


def ends_table(record: dict) -> str:
    """Where each method ends, a line a method."""
    heads = ["method", f"right of {len(record['queries'])}", "label", "way", "asim", "centred"]
    lines = []
    for method, name in NAMES.items():
        end = end_of(record, method)
        counts = [str(end.right), str(end.labelled)]
        lines.append([name, *counts, percent(end.way), f"{end.asim:.2f}", f"{end.centred:.2f}"])
    return html_table(heads, lines)


def reading(record: dict) -> str:
    """How to read the table and the pictures, as HTML paragraphs."""
    ends = {method: end_of(record, method) for method in NAMES}
    total = len(record["queries"])
    error = 100 * math.sqrt(0.25 / total)
    first, second = record["variance"]
    base, icl = (record["methods"][name]["states"][0] for name in ("base", "icl"))
    paragraphs = (
        "<em>Label</em>: queries answered with one of the two labels. <em>Way</em>: how far the "
        "mean of the cloud has come from base (0%) to ICL (100%) along the first axis. In the same "
        f"unit, along the second axis, which is stretched, SFT moves it by "
        f"{percent(ends['sft'].aside)}, IA2 by {percent(ends['ia2'].aside)}, ICL by "
        f"{percent(ends['icl'].aside)}.",
        f"The first axis, {first:.0%} of the variance, is mostly the shift from base to ICL that "
        f"all queries share. steer adds such a shift and nothing else, one vector a layer: way "
        f"{percent(ends['steer'].way)}, asim {ends['steer'].asim:.2f}. So much of asim can be had "
        f"from the shared shift alone. With it taken off, the similarity is "
        f"{ends['base'].centred:.2f} for base, {ends['sft'].centred:.2f} for SFT, "
        f"{ends['ia2'].centred:.2f} for IA2 and {ends['steer'].centred:.2f} for steer.",
        f"The second axis, {second:.1%}, is mostly how base's marks differ: they spread "
        f"{pstdev(base['y']) / pstdev(icl['y']):.1f} times as wide along it as ICL's. Of ICL's own "
        f"spread along it {between(icl['y'], data.BLOCK):.0%} comes from differences between "
        f"groups of {data.BLOCK} queries that share one order of the demonstrations, which a "
        "student without demonstrations cannot know.",
        f"ICL is right in {ends['icl'].right} of {total} queries, base's own choice between the "
        f"two labels in {ends['base'].right_among_labels}. With {total} queries an accuracy has a "
        f"standard error of up to {error:.0f} points, and this is one few-shot set: look at where "
        "the methods go, not at which is right most often.",
    )
    return "\n".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)


def settings_text(record: dict) -> str:
    """Model, data, training."""
    ia2_stage = record["methods"]["ia2"]["stage"]
    last = record["methods"]["ia2-sft"]["stage"]
    return (
        f"The cloud, the curves and their table: {MODEL_NAMES[record['model']]}; rated movie "
        f"snippets ({record['source']}), few-shot set {record['set']} with n = {record['n']} "
        f"examples and words as labels; LoRA of rank {record['rank']}, Adam at "
        f"{cells.rate_text(record['lr'])}, all examples in each step. IA2 starts at a loss of "
        f"{ia2_stage['first_loss']:.3f} and is kept after step {ia2_stage['kept_step']}; the SFT "
        f"stage after it is kept at step {last['kept_step']} of {last['steps']}, where its loss on "
        f"{record['n'] // 2} more examples is lowest. The queries are the first "
        f"{len(record['queries'])} test texts of at most {page_record.LETTERS} letters."
    )


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--record", action="store_true", help="train, and write the record anew")
    args = parser.parse_args(argv)
    if args.record:
        RECORD.write_text(page_record.json_text(page_record.record_lesson()), encoding="utf-8")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    text = page(record, few_shot_rows(), TEMPLATE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")
    cli.log(f"docs/{PAGE.name}: {len(text.encode()) / 1000:.1f} kB")


if __name__ == "__main__":
    sys.exit(cli.run_main(main, lora.LoRAError))
