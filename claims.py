"""The paper's claims, one by one, against a results file: holds, does not hold, or undecided, with the figure."""
import statistics

import metrics
import results

MUCH, LITTLE = 0.25, 3.0  # "shares much": a quarter of the subspace; "near chance": below three times the chance level


def verdict(rows, figure, first, second, better):
    """(text, verdict) of a paired difference first - second; `better` is +1 where larger is what the paper says."""
    found = results.difference(rows, figure, first, second)
    if not found:
        return None
    text, low, high = found
    if better * low > 0 and better * high > 0:
        return text, "holds"
    return text, "does not hold" if better * low < 0 and better * high < 0 else "undecided"


def calibration(rows):
    """The rank correlation of asim and ECE over all tests of trained models, as text and verdict."""
    found = results.asim_ece_correlation(rows)
    if not found:
        return None
    correlation, p, tests = found
    text = f"rank correlation of asim and ECE {correlation:+.2f} (p = {p:.1g}), {tests} tests"
    return text, "undecided" if p > 0.05 else "holds" if correlation < 0 else "does not hold"


def subspaces(rows):
    """Overlaps of the updates (paper, figure 4): (of ia2 and ia2-sft, of sft with both), as texts and verdicts."""
    shares, chance = {}, []
    for row in rows:
        for other, modules in (row.get("overlap") or {}).items():
            values = [value for layers in modules.values() for value in layers]
            shares.setdefault((other, row["method"]), []).append(statistics.fmean(values))
        chance += list((row.get("overlap_chance") or {}).values())
    if not {("ia2", "ia2-sft"), ("sft", "ia2"), ("sft", "ia2-sft")} <= set(shares):
        return None, None
    mean = {pair: statistics.fmean(values) for pair, values in shares.items()}
    level = statistics.fmean(chance)
    apart = max(mean["sft", "ia2"], mean["sft", "ia2-sft"])
    return ((f"ia2 and ia2-sft share {100 * mean['ia2', 'ia2-sft']:.0f}% (the paper: about 39%), chance is {100 * level:.1f}%",
             "holds" if mean["ia2", "ia2-sft"] > MUCH else "does not hold"),
            (f"sft shares {100 * mean['sft', 'ia2']:.1f}% with ia2 and {100 * mean['sft', 'ia2-sft']:.1f}% with ia2-sft, chance is "
             f"{100 * level:.1f}%", "holds" if apart < LITTLE * level else "does not hold"))


def teacher(rows):
    """How much of the outcome is the teacher's, as Markdown: made after the fact and no claims of the paper.

    The rank correlation of ICL's and IA2's accuracy over sets and tasks; then the claims that are about gains, apart for tests on
    which ICL was better and worse than the base model.
    """
    place = lambda row: (*results.cell(row), row["set"], row["eval_dataset"])
    picked = results.pick_rates(rows)
    found = {method: {place(row): row["accuracy"] for row in picked if row["method"] == method} for method in ("base", "icl", "ia2")}
    shared = [key for key in found["icl"] if key in found["ia2"]]
    lines = []
    if len(shared) >= 3:
        correlation, p = metrics.rank_correlation([found["icl"][key] for key in shared], [found["ia2"][key] for key in shared])
        lines.append(f"The rank correlation of ICL's accuracy and IA2's, of teacher and copy, is {correlation:+.2f} (p = {p:.1g}) over "
                     f"{len(shared)} pairs of few-shot set and task.")
    columns = []
    for sign in (1, -1):
        keys = {key for key in found["icl"] if key in found["base"] and (found["icl"][key] > found["base"][key]) == (sign > 0)}
        some = [row for row in picked if place(row) in keys]
        outcomes = (verdict(some, "accuracy", "ia2-sft", "sft", +1), verdict(some, "ece", "ia2-sft", "sft", -1),
                    verdict(some, "ece", "icl", "sft", -1), calibration([row for row in rows if place(row) in keys]))
        columns.append([outcome[0] if outcome else "-" for outcome in outcomes])
    names = ("accuracy", "ECE", "ECE", "calibration")
    parts = [[name, *texts] for name, *texts in zip(names, *columns) if set(texts) != {"-"}]
    if parts:
        lines += ["", results.markdown([["", "where ICL is more accurate than the base model", "where it is not"], *parts])]
    return "\n".join(lines).strip()


def check(rows):
    """[(claim, figure, verdict)] for the claims that these rows can speak to; learning rates are picked by dev loss."""
    picked = results.pick_rates(rows)
    inside = [row for row in picked if row["eval_dataset"] == row["dataset"]]
    outside = [row for row in picked if row["eval_dataset"] != row["dataset"]]
    shared, apart = subspaces(picked)
    found = [
        ("IA2 then SFT works more like ICL inside than SFT", verdict(picked, "asim", "ia2-sft", "sft", +1)),
        ("SFT moves away from ICL inside", verdict(picked, "asim", "sft", "base", -1)),
        ("ICL is better calibrated than SFT", verdict(picked, "ece", "icl", "sft", -1)),
        ("IA2 then SFT is more accurate than SFT", verdict(inside, "accuracy", "ia2-sft", "sft", +1)),
        ("the same, out of domain", verdict(outside, "accuracy", "ia2-sft", "sft", +1)),
        ("IA2 then SFT is better calibrated than SFT", verdict(inside, "ece", "ia2-sft", "sft", -1)),
        ("the same, out of domain", verdict(outside, "ece", "ia2-sft", "sft", -1)),
        ("IA2 then SFT is more accurate than ICL", verdict(picked, "accuracy", "ia2-sft", "icl", +1)),
        ("IA2 alone is more accurate than SFT", verdict(picked, "accuracy", "ia2", "sft", +1)),
        ("the closer to ICL inside, the better calibrated", calibration(rows)),
        ("IA2 then SFT stays in the subspace of IA2", shared),
        ("SFT's updates are nearly orthogonal to both", apart),
        ("IA2 first is better than SFT first", verdict(picked, "accuracy", "ia2-sft", "sft-ia2", +1)),
        ("with ICL responses only, the joint loss beats SFT on them", verdict(picked, "accuracy", "ia2+sft", "sft-icl", +1)),
        ("activations are a better signal than soft labels", verdict(picked, "accuracy", "ia2-sft", "kd", +1)),
    ]
    return [(claim, *outcome) for claim, outcome in found if outcome]


def table(rows):
    """The claims as a Markdown table, or nothing where too little is known."""
    found = check(rows)
    if len(found) < 3:
        return ""
    lines = teacher(rows)
    return ("### The paper's claims\n\n" + results.markdown([["claim", "figure", "here"], *map(list, found)]) + "\n"
            + (f"\nLooked into afterwards:\n\n{lines}\n" if lines else ""))
