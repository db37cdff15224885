"""pytest tests/lab/test_report.py: tables that average over few-shot sets alone, one primary test,
and what training undid.
"""

import itertools
import json
import math
import re
from pathlib import Path

import pytest
from samples import row as sample_row
from scipy import stats

import ia2
from lab import cells, comparisons, diagnostics, differences, report, variants
from lab import rows as result_rows
from support import cli, records
from support.cli import UserError

ROOT = Path(__file__).parents[2]
COMMITTED = sorted(ROOT.glob("results/*-*/results.jsonl"))  # of the former procedure
VERDICTS = ("holds", "does not hold", "undecided")
FEWEST_SETS = comparisons.FEWEST_SETS


@pytest.fixture(autouse=True)
def verdicts_of_two_sets(monkeypatch):
    """Tests of the other rules need few rows."""
    monkeypatch.setattr(comparisons, "FEWEST_SETS", 2)


def row(method="sft", number=0, accuracy=0.5, lr=3e-4, **changes):
    """A row of the present procedure; base and ICL are not trained."""
    trained = {"lr": lr, "rank": 8, "epochs": 50, "keep": "best", "dev_gold_loss": 1.0}
    found = {
        "model_hash": "sha256:abcdef",
        "dtype": "float32",
        "pool_data": "p" * 16,
        "prompt": "{text}",
        "max_tokens": 1,
        "seed": 0,
        "train_data": f"train {number}",
        "dev_data": f"dev {number}",
        "train_labels": ["no", "yes", "no", "yes"],
        "dev_labels": ["no", "yes"],
        "test_data": f"queries {number}",
        "versions": {"torch": "2"},
        "set": number,
        "method": method,
        "accuracy": accuracy,
        **(trained if method not in ("base", "icl") else {"lr": None}),
        **changes,
    }
    return sample_row(**found)


def stage(name, kept, steps=50):
    return {"name": name, "kept_step": kept, "steps": steps}


def five_sets(first, second, **changes):
    """ia2-sft and sft on as many sets as there are pairs of accuracies."""
    rows = []
    for number, (one, other) in enumerate(zip(first, second)):
        rows.append(row("ia2-sft", number, one, **changes))
        rows.append(row("sft", number, other, **changes))
    return rows


# ---- what is averaged ----------------------------------------------------------------------------


def test_means_and_intervals_are_over_few_shot_sets():
    rows = [row("sft", i, accuracy) for i, accuracy in enumerate([0.4, 0.6, 0.8])]
    rows += [row("base", i, 0.5) for i in range(3)]
    low, high = stats.t.interval(0.95, 2, loc=60, scale=stats.sem([40, 60, 80]))
    text = report.tables(rows)
    assert f"| 60.0 [{low:.1f}, {high:.1f}]" in text
    assert "| base " in text
    assert re.search(r"\| sft +\| 3e-4 \| 3 ", text)


CHANGES = [
    {"rank": 3},
    {"epochs": 10},
    {"keep": "last"},
    {"lr": 1e-3},
    {"sft_on": "icl"},
    {"beta": 2.0},
    {"targets": "unlabelled"},
    {"queries": 16},
    {"an_option_of_the_future": "on"},
    {"seed": 1},
    {"test": 20},
    {"n": 8},
    {"pool_data": "q" * 16},
    {"labels": "digits"},
    {"balanced": False},
    {"source": "folder:d"},
    {"model": "other"},
    {"model_hash": "sha256:fedcba"},
    {"dtype": "bfloat16"},
    {"demos": "flipped"},
    {"versions": {"torch": "3"}},
    {"prompt": "Text:{text}"},
    {"dataset": "e"},
    {"eval_dataset": "e"},
    {"max_tokens": 5},
    {"procedure": "1"},
]


@pytest.mark.parametrize("change", CHANGES)
def test_rows_that_differ_in_anything_but_the_set_are_never_averaged(change):
    text = report.tables([row("sft", 0, 0.4), row("sft", 1, 0.9, **change)])
    assert "65.0" not in text
    assert "40.0" in text
    assert "90.0" in text
    assert not re.search(r"\| sft [^\n]*\| 2 +\|", text)


@pytest.mark.parametrize("change", [{"test_data": "other queries"}, {"commit": "abc"}])
def test_other_queries_and_where_it_ran_do_not_part_the_sets(change):
    text = report.tables([row("sft", 0, 0.4), row("sft", 1, 0.9, **change)])
    assert "65.0" in text
    assert "drawn anew for each set" in text


@pytest.mark.parametrize("field", ["train_data", "dev_data"])
def test_one_number_for_two_few_shot_sets_is_refused(field):
    rows = [row("sft", 0), row("ia2", 0), row("sft", 1)]
    report.check_rows(rows)
    rows[1][field] = "other examples"
    with pytest.raises(UserError, match=f"few-shot set 0 of d.*{field}.*not one few-shot set"):
        report.tables(rows)


def test_one_method_twice_on_one_set_is_refused():
    rows = [row("sft", 0, 0.4), row("sft", 0, 0.5, test_data="other queries")]
    with pytest.raises(UserError, match="two rows of sft on d"):
        report.tables(rows)


@pytest.mark.parametrize("field", ["method", "set", "accuracy", "model", "n"])
def test_rows_of_another_kind_are_refused_in_a_sentence(field):
    broken = row("sft", 1)
    del broken[field]
    with pytest.raises(UserError, match=f"lacks `{field}`"):
        report.tables([row("sft", 0), broken])


def test_stages_of_an_earlier_version_are_refused_in_a_sentence():
    rows = [row("sft", stages=[{"name": "sft", "steps": 50, "best_step": 0}])]
    with pytest.raises(UserError, match="stages without `kept_step`"):
        report.tables(rows)


def test_scores_that_are_missing_or_not_finite_leave_a_dash():
    rows = [row("sft", i, nll=math.nan, asim=None, gap=None) for i in range(3)]
    rows += [row("ia2-sft", i, nll=0.3 if i else None, asim=0.5) for i in range(3)]
    rows += [row("icl", i, math.nan) for i in range(3)]
    text = report.report(rows)
    assert "nan" not in text
    line = next(line for line in text.splitlines() if line.startswith("| icl "))
    assert "| -  " in line
    assert "0.300 [0.300, 0.300]" in text


def test_each_methods_ece_stands_with_its_own_floor():
    rows = [row("sft", i, ece_floor=0.012) for i in range(2)]
    rows += [row("icl", i, ece_floor=0.087) for i in range(2)]
    head, _, *lines = report.grid(report.method_lines(rows)).splitlines()
    place = [cell.strip() for cell in head.split("|")].index("its floor")
    floors = {}
    for line in lines:
        found = [cell.strip() for cell in line.split("|")]
        floors[found[1]] = found[place]
    assert floors == {"sft": "0.012", "icl": "0.087"}


def test_the_top_1_ece_is_in_no_table():
    rows = [row("base", i, 0.0, ece_top1=0.0613) for i in range(2)]
    assert "0.061" not in report.report(rows)


# ---- learning rates ------------------------------------------------------------------------------


def test_all_rates_stand_side_by_side_and_dev_picks_by_the_gold_loss():
    """By the stage's own dev loss and by the test 1e-3 would win; the true answers say 1e-4."""
    rows = [row("ia2", i, 0.9, 1e-3, dev_gold_loss=0.9, dev_loss=1.0) for i in range(2)]
    rows += [row("ia2", i, 0.3, 1e-4, dev_gold_loss=0.2, dev_loss=9.0) for i in range(2)]
    rows += [row("sft", 0, 0.8, 1e-2, dev_gold_loss=0.1)]  # lacks a set: is not picked
    rows += [row("sft", i, 0.5, 1e-4, dev_gold_loss=0.5) for i in range(2)]
    rows += [row("base", i, 0.4) for i in range(2)]
    picked = {(each["method"], each["lr"]) for each in result_rows.pick_by_dev(rows)}
    assert picked == {("ia2", 1e-4), ("sft", 1e-4), ("base", None)}
    text = report.tables(rows)
    for rate in ("1e-4", "1e-3", "1e-2"):
        part = text.split(f"Every method at {rate}:")[1].split("Every")[0]
        assert "| base " in part
    assert "lowest cross-entropy on the true answers of the dev examples" in text


def test_a_rate_without_a_dev_figure_is_not_picked():
    rows = [row("ia2", 0, 0.9, 1e-3, dev_gold_loss=None), row("ia2", 0, 0.1, 1e-4)]
    assert [each["lr"] for each in result_rows.pick_by_dev(rows)] == [1e-4]
    without = [row("ia2", 0, lr=lr, dev_gold_loss=None) for lr in (1e-3, 1e-4)]
    assert result_rows.pick_by_dev(without) == []


def test_rates_with_other_few_shot_sets_are_not_compared():
    rows = [row("ia2", 0, 0.9, 1e-3, dev_gold_loss=0.1), row("ia2", 1, 0.1, 1e-4, dev_gold_loss=1)]
    assert result_rows.pick_by_dev(rows) == []
    assert "lowest cross-entropy" in report.tables(rows)


def test_free_text_is_in_no_part_that_is_about_labels():
    rows = [row("sft", labels=None), row("sft", 1, train_labels=["yes"])]
    rows += [row("sft", 2, train_labels=["yes", "no"])]
    parts = {
        part.name: [bool(part.holds(each)) for each in rows] for part in differences.parts_of(rows)
    }
    assert parts["words as labels"] == [False, True, True]
    assert parts[differences.TWO_LABELS] == [False, False, True]
    assert not [name for name in parts if "None" in name]


def test_the_authors_rule_takes_the_best_mean_test_accuracy_of_each_test():
    rows = []
    for test, best in (("d", 1e-4), ("e", 1e-3)):
        for lr in (1e-4, 1e-3):
            for i in range(2):
                accuracy = (0.8 if lr == best else 0.6) + 0.02 * i
                rows.append(row("sft", i, accuracy, lr, eval_dataset=test))
    text = report.tables(rows)
    table = text.split("### Picked by test accuracy, as the authors do")[1].split("###")[0]
    assert re.search(r"\| sft +\| 81.0 at 1e-4 \| 81.0 at 1e-3 +\|", table)
    assert "too high" in table


@pytest.mark.parametrize(
    ("rate", "text"),
    [(3e-4, "3e-4"), (1e-3, "1e-3"), (2.5e-5, "2.5e-5"), (0.5, "5e-1"), (None, "-")],
)
def test_rates_are_written_as_in_the_paper(rate, text):
    assert cells.rate_text(rate) == text


# ---- differences and the tests -------------------------------------------------------------------


def test_differences_pair_the_sets_and_average_tests_and_n_first():
    rows = []
    for number, (first, second) in enumerate([(0.9, 0.6), (0.8, 0.7), (0.7, 0.65)]):
        for test, n, more in (("d", 4, 0.0), ("e", 4, 0.1), ("d", 8, -0.1)):
            changes = {"eval_dataset": test, "n": n}
            rows.append(row("ia2-sft", number, first + more, **changes))
            rows.append(row("sft", number, second, **changes))
    found = comparisons.paired(rows, "accuracy", "ia2-sft", "sft")
    assert list(found.values()) == pytest.approx([0.3, 0.1, 0.05])
    low, high = stats.t.interval(0.95, 2, loc=15, scale=stats.sem([30, 10, 5]))
    p = stats.ttest_1samp([30, 10, 5], 0).pvalue
    text = report.report(rows)
    line = f"At 3e-4: +15.0 [{low:+.1f}, {high:+.1f}], 3 sets, 3 of them above zero"
    assert f"{line}, p = {p:.4f}: the plan's verdict".replace("= 0.", "= .") in text


def test_a_set_that_lacks_one_of_the_two_methods_is_left_out():
    rows = five_sets([0.9, 0.8], [0.6, 0.7]) + [row("ia2-sft", 2, 0.1)]
    assert len(comparisons.paired(rows, "accuracy", "ia2-sft", "sft")) == 2


def test_models_trained_on_the_same_texts_are_one_set():
    """n = 2 is the start of n = 4, other labels are other words for the same examples."""
    rows = five_sets([0.9, 0.8], [0.5, 0.6])
    rows += five_sets([0.7, 0.6], [0.5, 0.6], model="larger", labels="digits", pool_data="q")
    rows += five_sets([0.5], [0.5], model="larger", labels="digits", pool_data="q", n=2)
    found = comparisons.paired(rows, "accuracy", "ia2-sft", "sft")
    # set 0: 0.4 of the first model, and of the second the mean of 0.2 and 0.0
    assert list(found.values()) == pytest.approx([(0.4 + 0.1) / 2, (0.2 + 0.0) / 2])


def test_a_stand_in_is_the_task_that_it_stands_in_for():
    stand_in = row(dataset="sst2", source="stand-in movies, pypi:x==1")
    assert result_rows.independent_set(stand_in) == result_rows.independent_set(
        row(dataset="movies", source="pypi:x==1")
    )
    others = [{"balanced": False}, {"seed": 1}, {"dataset": "amazon"}, {"source": "hub"}]
    keys = {result_rows.independent_set(row(**change)) for change in others}
    assert len(keys - {result_rows.independent_set(row())}) == len(others)


def test_the_primary_test_is_one_and_at_one_rate():
    """At 1e-4 the difference would be sure; at the planned rate it is not."""
    rows = five_sets([0.9, 0.91, 0.92], [0.6, 0.6, 0.6], lr=1e-4)
    rows += five_sets([0.9, 0.5, 0.6], [0.6, 0.6, 0.6])
    section = differences.all_tests(rows)
    text = "\n".join(section)
    assert text.count("the plan's verdict, on the rows of its own run") == 1
    assert "At 3e-4: +6.7 " in text
    first = next(line for line in text.splitlines() if line.startswith("| all "))
    assert "+31.0 " in first  # the other rates stand beside it
    assert "+18.8 " in first  # and so does their mean


@pytest.mark.parametrize(
    ("first", "word"),
    [
        ([0.9, 0.91, 0.92], "holds"),
        ([0.3, 0.31, 0.32], "does not hold"),
        ([0.9, 0.3, 0.6], "undecided"),
    ],
)
def test_a_tests_word_is_that_of_its_interval(first, word):
    found = comparisons.paired(five_sets(first, [0.6] * 3), "accuracy", "ia2-sft", "sft")
    values = list(found.values())
    assert comparisons.verdict(values, comparisons.p_value(values), 1) == word


def test_both_methods_of_a_pair_answered_the_same_queries():
    """A later run with more queries that has only one of the two is not paired with the former."""
    rows = five_sets([0.9, 0.8], [0.6, 0.7], test_data="of 100 queries")
    rows += [row("sft", i, 0.1, test=200, test_data="of 200 queries") for i in range(2)]
    found = comparisons.paired(rows, "accuracy", "ia2-sft", "sft")
    assert list(found.values()) == pytest.approx([0.3, 0.1])


def test_two_dtypes_of_a_model_are_never_averaged():
    rows = five_sets([0.9, 0.8], [0.6, 0.7])
    other = five_sets([0.9, 0.8], [0.6, 0.7], model="larger", dtype="bfloat16")
    assert len(comparisons.paired(rows + other, "accuracy", "ia2-sft", "sft")) == 2
    mixed = rows + five_sets([0.9, 0.8], [0.6, 0.7], dtype="bfloat16")
    with pytest.raises(UserError, match="rows of m in bfloat16 and float32.*keep those of one"):
        report.tests(mixed)


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 32},
        {"epochs": 10},
        {"keep": "last"},
        {"lr": 1e-3},
        {"demos": "flipped"},
        {"sft_on": "icl"},
    ],
)
def test_rows_beside_the_plan_are_not_what_the_primary_test_is_made_on(change):
    rows = five_sets([0.9, 0.91, 0.92], [0.6, 0.6, 0.6], **change)
    text = report.report(rows)
    assert "Not made" in text
    assert not any(f"**{word}**" in text for word in VERDICTS)
    assert "+31.0 " in text  # the difference is shown all the same


def test_rates_that_cover_less_are_not_set_beside_those_that_cover_more():
    rows = five_sets([0.9, 0.8], [0.6, 0.7]) + five_sets([0.5, 0.6], [0.6, 0.5], n=8)
    rows += five_sets([0.9, 0.9], [0.6, 0.6], lr=1e-3)
    text = "\n".join(differences.all_tests(rows))
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if "|" in line}
    assert [cell.strip() for cell in lines["all"].split("|")][3] == "-"
    assert "+30.0 " in lines["n = 4"]


def test_arms_are_compared_with_arms_of_the_same_training():
    """Rank 32 with rank 32; an option that SFT does not have stands in no one's way."""
    rows = five_sets([0.9, 0.9], [0.6, 0.6])
    rows += five_sets([0.5, 0.5], [0.8, 0.8], rank=32)
    rows += [row("ia2-sft", i, 0.7, targets="unlabelled", queries=16) for i in range(2)]
    text = "\n".join(differences.all_differences(rows))
    found = {}
    for line in text.splitlines():
        if "accuracy" in line:
            parts = [cell.strip() for cell in line.split("|")]
            found[parts[1]] = parts[5].split()[0]
    assert found == {
        "ia2-sft, rank 8 minus sft": "+30.0",
        "ia2-sft, rank 32 minus sft": "-30.0",
        "ia2-sft, rank 8, queries 16, targets unlabelled minus sft": "+10.0",
    }


def test_base_is_compared_by_its_choice_among_the_labels():
    """Top-1, base is nearly always wrong, since it seldom answers with a label."""
    rows = five_sets([0.9, 0.8], [0.6, 0.7])
    for each in rows:
        each["accuracy_among_labels"] = each["accuracy"]
    for i in range(2):
        rows.append(row("base", i, 0.1, lr=None, accuracy_among_labels=0.75))
    lines = {}
    for line in "\n".join(differences.all_differences(rows)).splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if "minus base" in line and cells[2] == "among labels, points":
            lines[cells[1]] = cells[5].split()[0]
    assert lines == {"ia2-sft minus base": "+10.0", "sft minus base": "-10.0"}


def test_how_well_labels_are_told_apart_is_told_of_sets_of_two_labels_and_of_one():
    """Of rows that were made before this was measured, too: their outcomes have it."""
    rows = []
    for number, labels in enumerate((["no", "yes", "no", "yes"], ["yes"] * 4)):
        for method, first in (("sft", 0.6), ("ia2-sft", 0.2)):  # of yes, after a query whose is no
            shares = [[1 - first, first], [0.5, 0.5], [0.7, 0.3], [0.1, 0.9]]
            outcomes = []
            for label, both in zip((0, 1, number, 1), shares):
                outcomes.append([label, int(both[1] > both[0]), None, 0.1, both])
            kept = row(method, number, train_labels=labels, outcomes=outcomes)
            rows.append(result_rows.with_later_scores(kept))
    assert [each["label_auroc"] for each in rows] == pytest.approx([3 / 4, 1, 1 / 3, 1])
    # Divided by the means, .575 and .475 of yes: yes where its ratio is the larger one.
    assert [each["accuracy_batch_calibrated"] for each in rows] == [0.5, 1, 0.25, 0.75]
    text = "\n".join(differences.separation(rows))
    assert "| ia2-sft minus sft | +0.458" in re.sub(" +", " ", text)
    assert "| +0.250, 1 set | +0.667, 1 set |" in re.sub(" +", " ", text)
    assert "| +50.0, 1 set | +50.0, 1 set |" in re.sub(" +", " ", text)
    assert differences.separation([row("sft"), row("ia2-sft")]) == []


def rejected(p_values, level):
    """Holm's procedure as he wrote it: step down until one is too large."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found = set()
    for step, i in enumerate(order):
        if p_values[i] > level / (len(p_values) - step):
            break
        found.add(i)
    return found


def test_holms_adjusted_values_are_the_levels_at_which_his_procedure_rejects():
    for p_values in itertools.product([0.001, 0.011, 0.02, 0.04, 0.3], repeat=3):
        adjusted = comparisons.holm(list(p_values))
        for level in (0.0031, 0.022, 0.034, 0.05, 0.1, 0.61):
            assert {i for i, p in enumerate(adjusted) if p <= level} == rejected(p_values, level)
    assert comparisons.holm([0.02, math.nan, 0.03])[0] == pytest.approx(0.04)
    assert math.isnan(comparisons.holm([0.02, math.nan])[1])


def test_secondary_tests_are_the_papers_claims_with_holms_correction():
    rows = []
    gains = [0.10, 0.12, 0.11, 0.13]
    for i, gain in enumerate(gains):
        rows.append(row("sft", i, 0.5, asim=0.4, ece=0.3))
        rows.append(row("ia2-sft", i, 0.5, asim=0.4 + gain, ece=0.3 - gain * i))
        rows.append(row("icl", i, 0.6 - gain, asim=1.0, ece=0.1 * i))
    tests = {test.claim.text: test for test in comparisons.secondary_tests(rows)}
    assert len(tests) == 4
    nearer = next(test for text, test in tests.items() if "nearer to ICL inside" in text)
    assert nearer.verdict == "holds"
    assert nearer.adjusted == pytest.approx(4 * nearer.p)
    assert nearer.p == pytest.approx(stats.ttest_1samp(gains, 0).pvalue)
    assert {test.verdict for test in tests.values()} == {"holds", "undecided"}
    claims = " ".join(claim.text for claim in comparisons.SECONDARY)
    assert "as accurate as ICL" not in claims  # the paper says neither of these
    assert "moves away" not in claims


def test_claims_about_labels_are_not_made_on_free_text():
    rows = five_sets([0.9, 0.8, 0.7], [0.6, 0.5, 0.4], labels=None, balanced=False, ece=None)
    rows += [row("icl", i, 0.5, labels=None, balanced=False, ece=None) for i in range(3)]
    for test in comparisons.secondary_tests(rows):
        assert "(labels)" not in test.claim.text


def test_asim_against_ece_is_looked_at_within_method_and_n():
    """Between methods they fall together; within each they rise together: that is what counts."""
    rows = []
    for method, level in (("sft", 0.1), ("ia2-sft", 0.4)):
        for i in range(5):
            rows.append(row(method, i, asim=level + i / 100, ece=0.5 - level + i / 100))
    text = "\n".join(differences.all_tests(rows))
    line = next(line for line in text.splitlines() if "rank correlation" in line)
    assert "+1.00, mean of 2" in line
    assert "not tested" in line


def test_verdicts_stand_beside_planned_tests_alone():
    rows = five_sets([0.9, 0.91, 0.92], [0.6, 0.6, 0.6], asim_centred=0.1)
    rows += [row("icl", i, 0.5) for i in range(3)] + [row("base", i, 0.1) for i in range(3)]
    text = report.report(rows)
    planned, _, rest = text.partition("\n## d, n = 4")
    assert "holds" in planned
    assert not any(word in rest for word in VERDICTS)
    former = report.report([{**each, "procedure": "1"} for each in rows])
    assert not any(word in former for word in VERDICTS)
    assert "no verdict, since the test was named after these rows were made" in former
    assert former.count(report.FORMER) == 1


def test_few_sets_get_no_verdict(monkeypatch):
    monkeypatch.setattr(comparisons, "FEWEST_SETS", FEWEST_SETS)
    values = [0.2, 0.21] * 9 + [0.19]
    assert comparisons.verdict(values, 1e-6, 1) == "too few sets"
    assert comparisons.verdict([*values, 0.2], 1e-6, 1) == "holds"


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.parent.name)
def test_committed_rows_get_no_verdict(file):
    text = report.report(records.read_rows(file))
    assert not any(re.search(rf"\b{word}\b", text) for word in VERDICTS)
    assert "former procedure" in text


# ---- what sets hold, what training kept ----------------------------------------------------------


def test_sets_with_one_label_are_counted_and_shown_apart():
    rows = five_sets([0.9, 0.8, 0.5], [0.6, 0.7, 0.5])
    for each in rows:
        if each["set"] == 2:
            each["train_labels"] = ["no"] * 4
    text = report.report(rows)
    assert "| 3, 1 of one label |" in text
    apart = text.split("Without the sets that have one label:")[1].split("\n\n")[1]
    assert "85.0 " in apart  # the mean of 0.9 and 0.8
    assert re.search(r"\| one label: cannot be learned +\| \+0.0, 1 set ", text)
    assert re.search(r"\| two labels or more +\| \+20.0 ", text)


def test_a_few_shot_set_is_described():
    rows = five_sets([0.9], [0.4], teacher_right=0.75)
    rows[0]["largest_share"] = 0.6
    rows[1]["largest_share"] = 0.949999988079071  # 95 of 100 in float32, as in older rows
    text = "\n".join(diagnostics.set_by_set(rows))
    assert re.search(r"\| 0 +\| 2 x no, 2 x yes +\| 1 x no, 1 x yes +\| 75 ", text)
    assert "40 (95% one label)" in text
    assert "| 90 " in text


def undone_rows():
    """Set 1: the SFT stage kept nothing, so IA2 then SFT is IA2; set 2 has one equal accuracy."""
    rows = []
    for i in range(3):
        scores = {"accuracy": 0.8, "asim": 0.9, "asim_layers": [0.9, 0.8], "nll": 0.5}
        other = scores if i == 1 else {**scores, "asim": 0.7, "asim_layers": [0.7, 0.7]}
        rows.append(row("sft", i, stages=[stage("sft", 20)]))
        rows.append(row("ia2", i, stages=[stage("ia2", 50)], **scores))
        kept = 0 if i == 1 else 4
        stages = [stage("ia2", 50), stage("sft", kept, 14)]
        rows.append(row("ia2-sft", i, stages=stages, **other))
    return rows


def test_a_method_that_is_undone_is_reported():
    text = report.report(undone_rows())
    assert "ia2-sft at 3e-4: a stage kept nothing in 1 of 3 sets (1)." in text
    assert "ia2-sft at 3e-4 is ia2, to the last digit of all scores, in 1 of 3 sets (1)." in text
    line = next(line for line in text.splitlines() if re.search(r"\| ia2-sft .*\| sft ", line))
    found = [cell.strip() for cell in line.split("|")[1:-1]]
    assert found[3:] == ["4, 0, 4", "14, 14, 14", "1 of 3", "3 of 3", "0 of 3"]


def test_a_method_that_equals_another_on_one_test_alone_is_not_called_equal():
    rows = undone_rows()
    for each in list(rows):
        rows.append({**each, "eval_dataset": "e", "asim": each["asim"] + 0.01 * len(rows)})
    assert " is ia2, to the last digit" not in report.report(rows)


def test_equal_accuracies_are_no_proof_that_methods_are_equal():
    rows = [row(method, 0, 0.8, asim=None, nll=None) for method in ("sft", "ia2-sft")]
    assert not comparisons.equal_in_all(*rows)
    assert comparisons.equal_in_all(row("sft"), row("ia2-sft"))


def test_a_stage_that_ran_as_long_as_it_may_is_counted():
    assert ia2.Recipe().batch_size == diagnostics.BATCH
    longer = {name: each.epochs for name, each in variants.METHODS.items() if each.epochs != 1}
    assert longer == diagnostics.EPOCHS
    assert {name.replace("_", "-") for name in diagnostics.GOLD_STAGES} == set(variants.USE_GOLD)
    alone = [{"name": "sft"}]
    both = [{"name": "ia2"}, {"name": "sft"}]
    assert diagnostics.cap(row("sft", n=4, stages=alone), 0) == 50
    assert diagnostics.cap(row("sft", n=9, stages=alone), 0) == 150
    assert diagnostics.cap(row("sft-100", n=8, stages=alone), 0) == 200
    unlabelled = row("ia2-sft", n=4, stages=both, queries=16)
    assert [diagnostics.cap(unlabelled, i) for i in range(2)] == [200, 50]
    for sft_on, most in (("gold", 50), ("icl", 200)):
        steered = row("steer-sft", n=4, stages=[{"name": "steered-sft"}], queries=16, sft_on=sft_on)
        assert diagnostics.cap(steered, 0) == most
    dosed = row("ia2-sft", n=4, stages=both, primer_epochs=5)
    assert [diagnostics.cap(dosed, i) for i in range(2)] == [5, 50]


def test_kinds_of_demos_stand_side_by_side_and_are_never_averaged():
    rows = []
    for i in range(2):
        rows.append(row("ia2", i, 0.8, agreement=0.25))
        rows.append(row("ia2", i, 0.3 + 0.1 * i, demos="flipped", agreement=0.25))
    rows += [row("ia2", i, 0.99, 3e-2, dev_gold_loss=0) for i in range(2)]  # flipped lacks it
    text = "\n".join(diagnostics.controls(rows))
    assert "99.0" not in text
    assert text.count(", at ") == 1
    assert re.search(r"\| own +\| ia2 +\| 80.0 \[80.0, 80.0\] +\| 25 ", text)
    line = next(line for line in text.splitlines() if line.startswith("| flipped"))
    assert "-50.0, -40.0" in line
    assert "-45.0 [" in line
    own = [each for each in rows if "demos" not in each]
    assert diagnostics.controls(own) == []


def test_subspaces_are_averaged_over_sets_whose_sft_kept_something():
    rows = []
    for i, (kept, share) in enumerate([(10, 0.8), (0, 1.0), (20, 0.7)]):
        stages = [stage("ia2", 50), stage("sft", kept)]
        overlap = {"ia2": share, "sft": 0.1, "chance": 0.01}
        rows.append(row("ia2-sft", i, stages=stages, overlap=overlap))
        rows.append(row("ia2", i, stages=stages[:1], overlap={"sft": 0.09, "chance": 0.01}))
    text = "\n".join(diagnostics.shared_subspace(rows))
    assert re.search(r"\| d, n = 4, words \| 3e-4 \| 2 +\| 75% ", text)
    assert "| 9% " in text
    assert "39%" in text


# ---- the command ---------------------------------------------------------------------------------


def written(path, rows):
    """A results file of some rows, each with a run of its own."""
    lines = [json.dumps({**each, "run": f"{path.stem} {i}"}) for i, each in enumerate(rows)]
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def test_a_row_that_two_files_hold_counts_once_and_is_the_first_files(tmp_path):
    """As base and ICL of the few-shot sets that two runs of the plan share."""
    shared = {"run": "shared", "test_data": "t"}
    for name, accuracy in (("one", 0.5), ("two", 0.6)):
        own = {**row(), "run": name, "test_data": "t"}
        lines = [json.dumps(each) for each in (own, {**row("icl", 0, accuracy), **shared})]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    rows = report.read_all([str(tmp_path / "one"), str(tmp_path / "two")])
    assert [each["run"] for each in rows] == ["one", "shared", "two"]
    assert rows[1]["accuracy"] == 0.5


def test_one_file_is_printed_whole_and_several_as_one_test(tmp_path, capsys):
    one = written(tmp_path / "one.jsonl", five_sets([0.9, 0.8], [0.6, 0.7]))
    other = written(tmp_path / "two.jsonl", five_sets([0.9, 0.8], [0.6, 0.7], dataset="e"))
    report.main([one])
    text = capsys.readouterr().out
    assert "## The primary test" in text
    assert "## d, n = 4, m" in text
    report.main([one, other])
    text = capsys.readouterr().out
    assert "4 sets" in text
    assert "### d -> d" not in text
    half = written(tmp_path / "half.jsonl", five_sets([0.9, 0.8], [0.6, 0.7], dtype="bfloat16"))
    both = tmp_path / "both.jsonl"
    both.write_text(Path(one).read_text() + Path(half).read_text())
    report.main([str(both)])
    text = capsys.readouterr().out
    assert text.count("## The primary test") == text.count("## d, n = 4, m") == 2
    (tmp_path / "empty.jsonl").write_text("")
    report.main([str(tmp_path / "empty.jsonl")])
    assert "There are no results yet." in capsys.readouterr().out


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("wrap", [list, lambda rows: {"rows": rows}, lambda rows: rows[0]["run"]])
def test_a_file_that_was_saved_again_in_another_form_is_not_taken_for_an_empty_one(
    wrap, end, indent, tmp_path, capsys
):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(wrap([row("sft", 0), row("sft", 1)]), indent=indent) + end)
    assert cli.run_main(lambda: report.main([str(path)])) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.match(rf"error: {path}, line 1: this is not a result", printed.err)


def test_a_missing_file_is_an_error_in_one_sentence(tmp_path, capsys):
    assert cli.run_main(lambda: report.main([str(tmp_path / "none.jsonl")])) == 2
    assert "there is no results file" in capsys.readouterr().err


def test_names_with_dollars_are_printed_and_drawn(tmp_path, capsys):
    rows = five_sets([0.9, 0.8], [0.6, 0.7], dataset="cost_$x$", eval_dataset="a$b")
    for each in rows:
        each["asim_layers"] = [0.5, 0.6]
        each["outcomes"] = [[0, 0, 0, 0.9, [0.9, 0.1]], [1, 0, None, 0.4, [0.6, 0.4]]]
    file = written(tmp_path / "rows.jsonl", rows)
    report.main([file, "--plots", str(tmp_path / "pictures")])
    assert "cost_$x$ -> a$b" in capsys.readouterr().out
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 4
