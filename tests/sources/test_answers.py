"""pytest tests/sources/test_answers.py: a table of answers in free text, and properties that hold for any text."""
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import folder

from sources import answers, tasks

NUMBERS = [
    ("She has 3 + 4 = 7.\n#### 7", 7),
    ("#### 1,234", 1234),
    ("#### 1,234,567.50 dollars", Fraction("1234567.5")),
    ("####-12", -12),
    ("#### $18", 18),
    ("#### -$3.50", Fraction("-3.5")),
    ("#### 12.\nQuestion: and 5 more?", 12),
    ("#### 7\n\nQuestion:Bo has 9 cups.\n#### 9", 7),
    ("The answer is 12.", 12),
    ("So the answer is $1,000 in total.", 1000),
    ("The answer is: 3/4", Fraction(3, 4)),
    ("Answer: 5 apples and 2 pears", 5),
    ("The answer is -0.5", Fraction("-0.5")),
    ("first 3, then 8, so 11", 11),
    ("It costs $2.50.", Fraction("2.5")),
    (r"Thus $x = \boxed{42}$ and 7 is not.", 42),
    (r"\boxed{1,024}", 1024),
    ("it is .5", Fraction("0.5")),
    ("5 - 3 = 2", 2),
    (r"\boxed{70{,}000}", 70000), (r"\boxed{1{,}234{,}567}", 1234567), (r"#### 70,\!000", 70000), (r"$12{,}500$", 12500),
    (r"\boxed{\frac{1}{2}}", Fraction(1, 2)), (r"\boxed{-\dfrac{3}{4}}", Fraction(-3, 4)), (r"#### \frac{7}{2}", Fraction(7, 2)),
    ("#### −5", -5), ("The answer is −12.", -12), (r"\boxed{−0.5}", Fraction("-0.5")),
    ("The answer is 20 - 5 = 15", 15), ("#### 3 * 4 = 12", 12), ("Answer: 100 / 4 = 25 apples", 25), ("The answer is x = 7.", 7),
    ("The answer is 12. Since 3 * 4 = 13 is wrong.", 12), ("**Answer:** 4.", 4),
    ("1e100000000", None), ("#### 5e-99999999", None), (r"\boxed{1E9999}", None), ("#### 1e3", 1000), ("#### 2.5e2", 250),
    ("20%", 20),
    ("no number at all", None),
    ("####", None),
    ("#### nothing", None),
    ("", None),
    ("3/0", None),
]


@pytest.mark.parametrize("text, expected", NUMBERS)
def test_numbers(text, expected):
    assert answers.number(text) == expected


BOXES = [
    (r"so $\boxed{3}$", "3"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\sqrt{\frac{a}{b}}+\{x\}}", r"\sqrt{\frac{a}{b}}+\{x\}"),
    (r"first \boxed{1}, then \boxed{2}", "2"),
    (r"\boxed {7}", "7"),
    (r"\fbox{9}", "9"),
    (r"\boxed{}", ""),
    (r"\boxed{1", None),
    (r"\boxed{1} and \boxed{2", "1"),
    (r"boxed{1}", None),
    ("", None),
]


@pytest.mark.parametrize("text, expected", BOXES)
def test_boxes(text, expected):
    assert answers.boxed(text) == expected


FORMULAS = [
    (r"\boxed{25 \text{ ft}}", r"\boxed{25}", True), (r"\boxed{25}", r"\boxed{25 \text{ ft}}", True),
    (r"\boxed{30}", r"\boxed{30\text{ miles per hour}}", True), (r"\boxed{7.50}", r"\boxed{\$7.50\text{ dollars}}", True),
    (r"\boxed{5}", r"\boxed{5\mbox{ cm}^2}", True), (r"\boxed{90^\circ}", r"\boxed{90}", True), (r"\boxed{50\%}", r"\boxed{50}", True),
    (r"\boxed{1{,}000}", r"\boxed{1000}", True), (r"\boxed{70,\!000}", r"\boxed{70000}", True), (r"\boxed{1,000}", r"\boxed{1000}", True),
    ("The answer is: 42", r"\boxed{42}", True), ("**Answer:** 4.", r"\boxed{4}", True), (r"so it is \(42\)", r"\boxed{42}", True),
    (r"thus \[x = 3\]", r"\boxed{3}", True), ("The answer is $x^2 + 1$.", r"\boxed{x^2+1}", True),
    ("The answer is 12. Next question", r"\boxed{12}", True), ("we get $3$ and $4$", r"\boxed{4}", True), ("so it is 17", r"\boxed{17}", True),
    (r"\boxed{\cfrac{25}{16}}", r"\boxed{\frac{25}{16}}", True), (r"\boxed{\frac{\sqrt6}3}", r"\boxed{\frac{\sqrt{6}}{3}}", True),
    (r"\boxed 2", r"\boxed{2}", True), (r"\boxed{137 \frac{1}{2}}", r"\boxed{137.5}", True), (r"\boxed{\dfrac12}", r"\boxed{0.5}", True),
    (r"\boxed{x\le 3}", r"\boxed{x \leq 3}", True), (r"\boxed{−5}", r"\boxed{-5}", True), (r"\boxed{-1/2}", r"\boxed{-\frac{1}{2}}", True),
    (r"\boxed{x = 5}", r"\boxed{5}", True), (r"\boxed{\text{even}}", r"\boxed{even}", True), (r"\boxed{3.}", r"\boxed{3}", True),
    (r"\boxed{\left( 1, 2 \right)}", r"\boxed{(1,2)}", True), (r"\boxed{.5}", r"\boxed{0.5}", True), (r"\boxed{2 \cdot 3}", r"\boxed{6}", True),
    (r"\boxed{2\frac{1}{3}}", r"\boxed{7}", False), (r"\boxed{7}", r"\boxed{2\frac{1}{3}}", False), (r"\boxed{3\frac{1}{2}}", r"\boxed{15.5}", False),
    (r"\boxed{5}", r"\boxed{-5}", False), (r"\boxed{(1,2)}", r"\boxed{(2,1)}", False), (r"\boxed{x^2}", r"\boxed{x^3}", False),
    (r"\boxed{x\le 3}", r"\boxed{x \geq 3}", False), (r"\boxed{12}", r"\boxed{1,2}", False), ("no answer", r"\boxed{1}", False), ("", r"\boxed{1}", False),
    (r"\boxed{9^{9^{9^9}}}", r"\boxed{3}", False), (r"\boxed{1e100000000}", r"\boxed{3}", False), (r"\boxed{10^{123456789}}", r"\boxed{3}", False),
    (r"\boxed{" + "(" * 400 + "1" + ")" * 400 + "}", r"\boxed{1}", False),
]


@pytest.mark.parametrize("predicted, expected, equal", FORMULAS)
def test_formulas(predicted, expected, equal):
    assert answers.same_formula(answers.final_formula(predicted), answers.final_formula(expected)) is equal


OWN = [("-5", "5", False), ("C++", "C", False), ("x-1", "x+1", False), ("a,b", "ab", False), ("5%", "5", False), ("$5", "5", False), ("!", "?", False),
       ("😀", "😢", False), ("", "x", False), ("A", "A", True), ("!", "!", True), ("😀", "😀", True), (".", ".", True), ("the", "the", True),
       ("Paris.", "paris", True), ("  Two words\n", "two words", True), ("C++.", "c++", True), ("-5.", "-5", True)]


@pytest.mark.parametrize("predicted, expected, equal", OWN)
def test_your_own_texts_may_differ_in_case_space_and_a_full_stop_only(predicted, expected, equal):
    assert answers.same_text(predicted, expected) is equal and answers.same_text(expected, predicted) is (equal and bool(predicted))


TEXTS = [
    ("One more is two.\n#### two", "#### Two", True),
    ("#### The nucleus.", "#### nucleus", True),
    ("#### carbon-dioxide", "#### carbon dioxide", True),
    ("#### two\nand then something", "#### two", True),
    ("oxygen\nmore text", "#### oxygen", True),
    ("#### oxygen", "#### nitrogen", False),
    ("", "#### oxygen", False),
    ("####", "#### oxygen", False),
]


@pytest.mark.parametrize("predicted, expected, equal", TEXTS)
def test_texts(predicted, expected, equal):
    assert answers.same_words(answers.after_hashes(predicted), answers.after_hashes(expected)) is equal


HARD = st.text() | st.text(alphabet="0123456789.,/-+$%#\\{} \nboxedfracsqrtansweri:")


@given(HARD, HARD)
@settings(max_examples=60, deadline=5000)
def test_no_text_breaks_a_parser_or_takes_for_ever(first, second):
    answers.same_number(answers.number(first), answers.number(second))
    answers.same_formula(answers.final_formula(first), answers.final_formula(second))
    answers.same_words(answers.after_hashes(first), answers.after_hashes(second))
    assert answers.same_number(answers.number(first), answers.number(first)) == (answers.number(first) is not None)
    assert answers.same_text(first, first) == bool(first.strip())


@given(st.integers(-10**9, 10**9), st.booleans())
def test_any_number_is_found_behind_the_marks(value, commas):
    text = f"{value:,}" if commas else str(value)
    for wording in ("#### {}", "We say 3 and 4.\n#### {}", "The answer is {}.", "so it is {}", r"\boxed{{{}}}"):
        assert answers.number(wording.format(text)) == value
    assert answers.same_formula(answers.final_formula(rf"\boxed{{{text}}}"), answers.final_formula(rf"\boxed{{{value}}}"))


SHARED = Path(__file__).parents[3] / "shared" / "data"  # more rows, where they are there


@pytest.mark.parametrize("name", [name for name, task in tasks.TASKS.items() if not task.labels])
def test_reference_solutions_score_100_percent(name, tmp_path):
    """Each gold response through what evaluation does to a model's: stripped, up to a blank line, parsed, compared."""
    task, folders = tasks.TASKS[name], [folder(tmp_path / "samples")] + [SHARED] * SHARED.exists()
    extra = {"gsm8k": {"question": "q", "answer": "One.\n\nTwo.\n#### 1,234"}, "gsm8ks": {"question": "q", "answer": "A\n \nB\n#### −5"},
             "hmath-algebra": {"problem": "q", "solution": "First.\n\n\nThen $\\boxed{\\frac12}$."},
             "sciq": {"question": "q", "support": "A.\n\nB.", "correct_answer": "c++"}}[name]
    responses = [task.read_row(extra).answer]
    for place in folders:
        responses += [item.answer for items in tasks.read_task(task, place)[1].values() for item in items]
    for response in responses:
        text = f" {response}".strip().split("\n\n")[0]
        assert task.same(task.parse(text), task.parse(response)), response
