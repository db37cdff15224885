"""Tables of results files; nothing is run: `python -m lab.report runs/movies/results.jsonl`.

Rows are averaged over few-shot sets and over nothing else: what differs in any other setting stands
in a table, or on a line, of its own. Intervals are 95% t intervals over the sets. With several
files only the tests over all their rows are printed.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from lab import comparisons, differences
from lab.cells import interval, number, rate_text
from lab.diagnostics import arm_name, controls, set_by_set, shared_subspace, steps_kept, test_name
from lab.rows import (
    SETTING,
    TEST,
    arms,
    at_rate,
    check_rows,
    group,
    has_one_label,
    is_number,
    mean,
    pick_by_dev,
    pick_by_test,
    rates,
    sets_of,
    setting,
    varied_options,
    with_later_scores,
)
from support import cli, records
from support.cli import UserError, log
from support.records import grid

FORMER = (
    "Rows whose `procedure` is 1 are of the former procedure: the dev loss was read every second "
    "step only, the start of a stage could be kept, and one draw of test queries served all sets."
)


@dataclass(frozen=True)
class Column:
    """A score of rows in the tables of methods."""

    field: str
    head: str
    factor: float = 1
    digits: int = 3
    has_interval: bool = True

    def cell(self, rows: list[dict]) -> str:
        """The mean over few-shot sets, with its interval."""
        values = [row.get(self.field) for row in rows]
        if not self.has_interval:
            values = [mean(rows, self.field)]
        return interval(values, self.factor, self.digits)


COLUMNS = (
    Column("accuracy", "accuracy %", 100, 1),
    Column("accuracy_among_labels", "among labels %", 100, 1),
    Column("accuracy_batch_calibrated", "batch-calibrated %", 100, 1),
    Column("label_auroc", "AUROC of labels"),
    Column("label_mass", "label mass %", 100, 1),
    Column("nll", "NLL"),
    Column("ece", "ECE"),
    Column("ece_floor", "its floor", has_interval=False),
    Column("gap", "gap"),
    Column("asim", "asim"),
    Column("asim_centred", "asim centred"),
    Column("forgets", "forgets"),
    Column("agreement", "as ICL %", 100, 1),
)


# ---- scores --------------------------------------------------------------------------------------


def tables(rows: list[dict]) -> str:
    """All tables of some rows as Markdown, setting by setting. Raises UserError for rows that
    cannot be averaged.
    """
    if not rows:
        return "There are no results yet."
    check_rows(rows)
    return "\n\n".join([*former_note(rows), *setting_tables(rows)])


def former_note(rows: list[dict]) -> list[str]:
    return [FORMER] if any(comparisons.is_former(row) for row in rows) else []


def setting_tables(rows: list[dict]) -> list[str]:
    """The tables of each setting."""
    parts = []
    for same in group(rows, SETTING).values():
        parts.append(heading(same))
        for one_test in group(same, TEST).values():
            parts += score_tables(one_test)
        parts += by_test_accuracy(same)
        parts += set_by_set(same)
        parts += steps_kept(same)
    return parts


def heading(rows: list[dict]) -> str:
    """Title of the tables of one setting, and what its rows have in common."""
    row = rows[0]
    demos = setting(row, "demos")
    taught = "" if demos == "own" else f", the teacher's demos {demos}"
    kind = "free text"
    if row.get("labels"):
        kind = f"{row['labels']} as labels, {'balanced' if row.get('balanced') else 'random'} sets"
    facts = [
        kind,
        f"seed {setting(row, 'seed')}",
        f"data {setting(row, 'pool_data')[:6]}",
        f"weights {setting(row, 'model_hash')[-6:]} in {setting(row, 'dtype')}",
    ]
    for name, version in (row.get("versions") or {}).items():
        facts.append(f"{name} {version}")
    for field in ("commit", "machine"):
        found = sorted({str(each[field]) for each in rows if each.get(field)})
        if found:
            facts.append(f"{field} {' and '.join(found)}")
    title = f"## {row['dataset']}, n = {row['n']}, {row['model']}{taught}"
    return "\n\n".join([title, "; ".join(facts)])


def score_tables(rows: list[dict]) -> list[str]:
    """The tables of one setting and test: each rate by itself, then the rates picked by dev."""
    row = rows[0]
    drawn = "one draw for all sets"
    if len({each.get("test_data") for each in rows}) > 1:
        drawn = "drawn anew for each set"
    queries = f"{setting(row, 'test')} test queries ({setting(row, 'eval_source')}), {drawn}"
    parts = [f"### {row['dataset']} -> {test_name(row)}", queries]
    found = rates(rows)
    if len(found) < 2:
        return [*parts, *with_and_without(rows)]
    for lr in found:
        parts.append(f"Every method at {rate_text(lr)}:")
        parts += with_and_without(at_rate(rows, lr))
    parts.append(
        "Each method at the rate with its lowest cross-entropy on the true answers of the dev "
        "examples, among the rates that have all its few-shot sets:"
    )
    return [*parts, grid(method_lines(pick_by_dev(rows)))]


def with_and_without(rows: list[dict]) -> list[str]:
    """The table of all few-shot sets, and that of those in which the task can be learned."""
    parts = [grid(method_lines(rows))]
    rest = [row for row in rows if not has_one_label(row)]
    if rest and len(rest) < len(rows):
        parts += ["Without the sets that have one label:", grid(method_lines(rest))]
    return parts


def method_lines(rows: list[dict]) -> list[list[str]]:
    """One test's rows as lines of cells: a head, then each method and how it was trained."""
    found = arms(rows)
    varied = varied_options(found)
    columns = [each for each in COLUMNS if any(is_number(row.get(each.field)) for row in rows)]
    head = ["method", "rate", *varied, "sets"]
    for column in columns:
        head.append(column.head)
        if column.field == "ece":
            head.append("ECE is the error")
    lines = [head]
    for arm in found:
        for same in group((row for row in rows if arm.holds(row)), ["lr"]).values():
            cells = [arm.method, rate_text(same[0].get("lr"))]
            cells += [dict(arm.options).get(field, "-") for field in varied]
            cells.append(sets_text(same))
            for column in columns:
                cells.append(column.cell(same))
                if column.field == "ece":
                    cells.append(sure_text(same))
            lines.append(cells)
    return lines


def sets_text(rows: list[dict]) -> str:
    """How many few-shot sets, and how many of them have one label among the training examples."""
    count = len(sets_of(rows))
    few = len(sets_of(row for row in rows if has_one_label(row)))
    return f"{count}, {few} of one label" if few else str(count)


def sure_text(rows: list[dict]) -> str:
    """In how many sets ECE is the error rate to .01, because the method is sure of everything."""
    count = 0
    for row in rows:
        ece, right = row.get("ece"), row.get("accuracy_among_labels")
        if is_number(ece) and is_number(right) and abs(ece - (1 - right)) < 0.01:
            count += 1
    return f"in {count}"


def by_test_accuracy(rows: list[dict]) -> list[str]:
    """The authors' rule on one setting: methods in lines, tests in columns."""
    count = len(rates(rows))
    if count < 2:
        return []
    picked = pick_by_test(rows)
    tests = list(group(picked, TEST).values())
    lines = [["method", *(test_name(same[0]) for same in tests)]]
    for arm in arms(picked):
        cells = [arm_name(arm, arms(picked))]
        for same in tests:
            held = [row for row in same if arm.holds(row)]
            at = f" at {rate_text(held[0]['lr'])}" if held and held[0].get("lr") else ""
            cells.append(number(mean(held, "accuracy"), 100) + at)
        lines.append(cells)
    return [
        "### Picked by test accuracy, as the authors do",
        "Mean accuracy %, each method on each test at the rate with the best mean *test* accuracy. "
        f"Such a figure is the largest of up to {count} means, so it is too high; it stands here "
        "because the paper's are made in this way.",
        grid(lines),
    ]


# ---- the report ----------------------------------------------------------------------------------


def report(rows: list[dict]) -> str:
    """The whole report of the rows of one file as Markdown."""
    parts = [*tests(rows), *setting_tables(rows), *differences.all_differences(rows)]
    return "\n\n".join([*parts, *controls(rows), *shared_subspace(rows)])


def tests(rows: list[dict]) -> list[str]:
    """What the rows are, and the tests over all of them. Raises UserError for rows that cannot be
    averaged.
    """
    check_rows(rows)
    names = []
    for field in ("dataset", "model"):
        names += dict.fromkeys(row[field] for row in rows)
    title = f"# {', '.join(names)}: {len(rows)} rows"
    return [title, *former_note(rows), *differences.all_tests(rows)]


def read_all(files: list[str]) -> list[dict]:
    """The rows of several files; one that is in an earlier file too is taken from there, since two
    runs of the plan may share few-shot sets. Raises UserError for a file that is not there.
    """
    rows = []
    there = set()
    for file in files:
        if not Path(file).exists():
            raise UserError(f"there is no results file {file}; give the path of a results.jsonl")
        own = [with_later_scores(row) for row in records.read_rows(file)]
        rows += [row for row in own if records.row_key(row) not in there]
        there |= {records.row_key(row) for row in own}
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("files", nargs="+", metavar="FILE", help="a results.jsonl")
    parser.add_argument("--plots", metavar="DIR", help="save the pictures as PNG there")
    args = parser.parse_args(argv)
    rows = read_all(args.files)
    if not rows:
        print("There are no results yet.")
        return
    parts = []
    for same in comparisons.by_dtype(rows):
        parts.append("\n\n".join(tests(same)) if len(args.files) > 1 else report(same))
    print("\n\n".join(parts))
    if args.plots:
        from lab import plots  # matplotlib is slow to start

        log(f"pictures: {len(plots.save_all(rows, args.plots))} in {args.plots}")


if __name__ == "__main__":
    sys.exit(cli.run_main(main))
