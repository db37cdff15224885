"""Tables of a results file; nothing is run: `python -m lab.report runs/movies/results.jsonl [--plots DIR]`.

Rows are averaged over few-shot sets and over nothing else: what differs in any other setting stands in a
table, or on a line, of its own. Intervals are 95% t intervals over the sets. A learning rate is picked by one
yardstick for every method, the cross-entropy of the true answers of the dev examples, never by a test figure.
"""
import sys
from pathlib import Path
from statistics import fmean

import metrics
from sources import offline
from sources.offline import UserError, grid

ORDER = ("base", "icl", "sft", "ia2", "ia2-sft", "sft-ia2", "ia2+sft", "sft-icl", "kd")
COMMON = ("model", "model_hash", "dtype", "dataset", "source", "pool_data", "prompt", "labels", "balanced",
          "max_tokens", "seed", "demos", "n", "versions")
TESTED = ("eval_dataset", "eval_source", "test", "test_data")
TRAINED = ("rank", "epochs", "sft_on", "beta")
FIGURES = (("accuracy", "accuracy %", 100, 1), ("accuracy_among_labels", "among labels %", 100, 1),
           ("label_mass", "label mass %", 100, 1), ("ece", "ECE", 1, 3), ("ece_floor", "its floor", 1, 3),
           ("ece_among_labels", "ECE among labels", 1, 3), ("asim", "asim", 1, 3),
           ("agreement", "as ICL %", 100, 1))  # field, head, factor, digits

def group(rows, fields):
    """{values of the fields: rows}, in the order of the rows; a field that a row lacks counts as None."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(str(row.get(field)) for field in fields), []).append(row)
    return groups

def pick_rates(rows):
    """Rows of each method's rate with the lowest dev loss of the true answers, averaged over few-shot sets.

    Rates that lack some of the sets are not picked. Base and ICL have no rate and stay.
    """
    picked = []
    for same in group(rows, (*COMMON, "method", *TRAINED)).values():
        rates = group(same, ["lr"])
        most = max(len({row["set"] for row in found}) for found in rates.values())
        whole = [found for found in rates.values() if len({row["set"] for row in found}) == most]
        picked += min(whole, key=lambda found: fmean(row.get("dev_gold_loss") or 0 for row in found))
    return picked

def interval(values, factor=1, digits=3, sign=""):
    """`81.2 [78.0, 84.4]` of several values, `81.2` of one, a dash of none."""
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    mean, low, high = (f"{factor * value:{sign}.{digits}f}" for value in metrics.t_interval(values))
    return f"{mean} [{low}, {high}]" if len(values) > 1 else mean

def method_lines(rows):
    """One test's rows as lines of cells: a head, then each method and what it was trained with."""
    lines = group(sorted(rows, key=lambda row: ORDER.index(row["method"])), ("method", "lr", *TRAINED))
    varied = [field for field in TRAINED if len({row.get(field) for row in rows if row["lr"]}) > 1]
    figures = [figure for figure in FIGURES if any(figure[0] in row for row in rows)]
    text = [["method", "rate", *varied, "sets", *(head for _, head, _, _ in figures)]]
    for found in lines.values():
        first = found[0]
        text.append([first["method"], f"{first['lr']:g}" if first["lr"] else "-",
                     *(str(first.get(field) or "-") for field in varied), str(len(found)),
                     *(interval([row.get(field) for row in found], factor, digits)
                       for field, _, factor, digits in figures)])
    return text

def controls(rows):
    """The kinds of the teacher's demos side by side, at the rates that each of them has, as Markdown."""
    parts, fields = [], [field for field in (*COMMON, *TESTED) if field != "demos"]
    for found in group(rows, fields).values():
        kinds = group(found, ["demos"])
        if len(kinds) > 1:
            rates = set.intersection(*({row["lr"] for row in some} for some in kinds.values()))
            lines = [["demos", *method_lines(found)[0]]]
            for (kind,), some in kinds.items():
                lines += [[kind, *line] for line in method_lines([r for r in some if r["lr"] in rates])[1:]]
            parts += [f"### The teacher's demos: {heading(found[0]).splitlines()[0]}", grid(lines)]
    return "\n\n".join(parts)

def paired(rows, figure, first, second):
    """first - second of a figure, one for each few-shot set, after its tests and n are averaged."""
    by_set = {}
    for row in rows:
        if row["method"] in (first, second) and row.get(figure) is not None:
            place = by_set.setdefault(row["set"], {}).setdefault((row["n"], row["eval_dataset"]), {})
            place[row["method"]] = row[figure]
    gaps = [[pair[first] - pair[second] for pair in places.values() if len(pair) == 2]
            for places in by_set.values()]
    return [fmean(gap) for gap in gaps if gap]

def differences(rows):
    """The differences that matter, as lines of text: ia2-sft against sft, icl and base."""
    lines = []
    for other in ("sft", "icl", "base"):
        parts = [f"{head} {interval(found, factor, digits, '+')}" for field, head, factor, digits in FIGURES
                 if field in ("accuracy", "ece", "asim") and (found := paired(rows, field, "ia2-sft", other))]
        if parts:
            lines.append(f"- ia2-sft minus {other}: {'; '.join(parts)}")
    return "\n".join(lines)

def heading(row):
    test = row["eval_dataset"] + ("" if row["eval_dataset"] == row["dataset"] else " (out of domain)")
    demos = "" if row.get("demos", "own") == "own" else f", the teacher's demos {row['demos']}"
    kind = f"{row['labels']} as labels, {'balanced' if row['balanced'] else 'random'} sets" if row["labels"] \
        else "free text"
    return (f"{row['dataset']} -> {test}, n = {row['n']}, {row['model']}\n\n{row['test']} test queries "
            f"({row['eval_source']}); {kind}{demos}; seed {row['seed']}; data {row['pool_data'][:6]}, "
            f"queries {row['test_data'][:6]}, weights {row['model_hash'][-6:]} in {row.get('dtype', '?')}, "
            f"{', '.join(' '.join(pair) for pair in row['versions'].items())}")

def tables(rows):
    """All tables of some rows as Markdown: each rate by itself, then the picked ones."""
    parts = []
    if not rows:
        return "There are no results yet."
    picked = {id(row) for row in pick_rates(rows)}
    for found in group(rows, (*COMMON, *TESTED)).values():
        parts.append(f"### {heading(found[0])}")
        rates = sorted({row["lr"] for row in found if row["lr"]})
        for rate in rates if len(rates) > 1 else []:
            equal = [row for row in found if row["lr"] in (None, rate)]
            parts += [f"Every method at {rate:g}:", grid(method_lines(equal)), differences(equal)]
        best = [row for row in found if id(row) in picked]
        if len(rates) > 1:
            parts.append("Each method at the rate with its lowest cross-entropy on the true answers of the "
                         "dev examples:")
        parts += [grid(method_lines(best)), differences(best)]
    return "\n\n".join(filter(None, parts))

# ---- claims ------------------------------------------------------------------------------------------------

def verdict(values, better):
    """On which side of zero the interval over sets lies; `better` is +1 where the paper says larger."""
    _, low, high = metrics.t_interval([better * value for value in values])
    return "holds" if low > 0 else "does not hold" if high < 0 else "undecided"

def claims(rows):
    """The paper's claims on the rows of one model and setting: [claim, figure, verdict]."""
    picked = pick_rates(rows)
    inside = [row for row in picked if row["eval_dataset"] == row["dataset"]]
    outside = [row for row in picked if row["eval_dataset"] != row["dataset"]]
    lines = [["claim", "difference, mean over few-shot sets [95%]", "here"]]
    for claim, some, field, first, second, better in (
            ("SFT moves away from ICL inside (asim, sft minus base)", picked, "asim", "sft", "base", -1),
            ("IA2 then SFT is nearer to ICL inside than SFT (asim)", picked, "asim", "ia2-sft", "sft", 1),
            ("IA2 then SFT is more accurate than SFT, in domain", inside, "accuracy", "ia2-sft", "sft", 1),
            ("the same out of domain", outside, "accuracy", "ia2-sft", "sft", 1),
            ("IA2 then SFT has a lower ECE than SFT, in domain", inside, "ece", "ia2-sft", "sft", -1),
            ("IA2 alone is as accurate as ICL or more, in domain", inside, "accuracy", "ia2", "icl", 1)):
        values = paired(some, field, first, second)
        if len(values) > 1:
            factor, digits = (100, 1) if field == "accuracy" else (1, 3)
            figure = f"{interval(values, factor, digits, '+')}, {len(values)} sets"
            lines.append([claim, figure, verdict(values, better)])
    shares = [row.get("overlap") or {} for row in inside if row["method"] == "ia2-sft"]
    pairs = [(share["ia2"], share["ia2, other set"]) for share in shares
             if "ia2" in share and "ia2, other set" in share]
    if len(pairs) > 1:
        own, control = (fmean(column) for column in zip(*pairs))
        lines.append(["IA2 then SFT stays in the subspace of IA2", f"{own:.0%} shared; with another set's "
                      f"{control:.0%}", verdict([first - second for first, second in pairs], 1)])
    trained = [row for row in picked if row["lr"] and "ece" in row]
    related = [metrics.rank_correlation([row["asim"] for row in some], [row["ece"] for row in some])
               for some in group(trained, ("method", "n", "eval_dataset")).values()]
    related = [value for value in related if value == value]
    if related:
        lines.append(["the nearer to ICL inside, the better calibrated", "rank correlation within method, n "
                      f"and test: mean {fmean(related):+.2f} of {len(related)}", "not tested"])
    return lines

def all_claims(rows):
    """The claims of every model, setting and n in some rows, as Markdown."""
    parts = []
    for found in group(rows, COMMON).values():
        lines = claims(found)
        if len(lines) > 1:
            parts += ["### Claims of the paper: {dataset}, n = {n}, {model}, {labels}, "
                      "teacher's demos {demos}".format(**found[0]), grid(lines)]
    return "\n\n".join(parts)

def main():
    parser = offline.Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("file", help="a results.jsonl")
    parser.add_argument("--plots", metavar="DIR", help="save the pictures as PNG there")
    args = parser.parse_args()
    if not Path(args.file).exists():
        raise UserError(f"there is no results file {args.file}; give the path of a results.jsonl")
    rows = offline.read_rows(args.file)
    print("\n\n".join(filter(None, [tables(rows), controls(rows), all_claims(rows)])))
    if args.plots:
        from lab import plots  # matplotlib is slow to start
        groups = group(pick_rates(rows), (*COMMON, *TESTED)).values()
        offline.say(f"pictures: {len(plots.save_all(groups, args.plots))} in {args.plots}")

if __name__ == "__main__":
    sys.exit(offline.run_main(main))
