"""pytest tests/test_answers.py: a table of answers in free text, and properties that hold for any text."""
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import answers

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


LATEX = [
    (r"\boxed{\dfrac{1}{2}}", r"\boxed{\frac12}", True),
    (r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", True),
    (r"\boxed{1/2}", r"\boxed{\frac{1}{2}}", True),
    (r"\boxed{-\frac{1}{2}}", r"\boxed{-1/2}", True),
    (r"\boxed{1{,}000}", r"\boxed{1{,}000}", True),
    (r"\boxed{1,000}", r"\boxed{1000}", True),
    (r"\boxed{10,\!000}", r"\boxed{10000}", True),
    (r"\boxed{\left( 1, 2 \right)}", r"\boxed{(1,2)}", True),
    (r"\boxed{x = 5}", r"\boxed{5}", True),
    (r"\boxed{5\text{ cm}}", r"\boxed{5}", True),
    (r"\boxed{\$18}", r"\boxed{18}", True),
    (r"\boxed{50\%}", r"\boxed{50}", True),
    (r"\boxed{90^\circ}", r"\boxed{90}", True),
    (r"\boxed{\sqrt2}", r"\boxed{\sqrt{2}}", True),
    (r"\boxed{\text{even}}", r"\boxed{even}", True),
    (r"\boxed{.5}", r"\boxed{0.5}", True),
    (r"\boxed{3.}", r"\boxed{3}", True),
    (r"The answer is $x^2 + 1$.", r"\boxed{x^2+1}", True),
    ("The answer is 12. Next question", r"\boxed{12}", True),
    ("we get $3$ and $4$", r"\boxed{4}", True),
    ("so it is 17", r"\boxed{17}", True),
    (r"\boxed{(1,2)}", r"\boxed{(2,1)}", False),
    (r"\boxed{x^2}", r"\boxed{x^3}", False),
    (r"\boxed{12}", r"\boxed{1,2}", False),
    ("no answer", r"\boxed{1}", False),
    ("", r"\boxed{1}", False),
]


@pytest.mark.parametrize("predicted, expected, equal", LATEX)
def test_latex(predicted, expected, equal):
    assert answers.same_latex(answers.latex(predicted), answers.latex(expected)) is equal


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
    assert answers.same_text(answers.after_hashes(predicted), answers.after_hashes(expected)) is equal


HARD = st.text() | st.text(alphabet="0123456789.,/-+$%#\\{} \nboxedfracsqrtansweri:")


@given(HARD, HARD)
def test_no_text_breaks_a_parser(first, second):
    answers.same_number(answers.number(first), answers.number(second))
    answers.same_latex(answers.latex(first), answers.latex(second))
    answers.same_text(answers.after_hashes(first), answers.after_hashes(second))
    assert answers.same_number(answers.number(first), answers.number(first)) == (answers.number(first) is not None)
    assert answers.normal_text(answers.normal_text(first)) == answers.normal_text(first)


@given(st.integers(-10**9, 10**9), st.booleans())
def test_any_number_is_found_behind_the_marks(value, commas):
    text = f"{value:,}" if commas else str(value)
    for wording in ("#### {}", "We say 3 and 4.\n#### {}", "The answer is {}.", "so it is {}", r"\boxed{{{}}}"):
        assert answers.number(wording.format(text)) == value
    assert answers.same_latex(answers.latex(rf"\boxed{{{text}}}"), answers.latex(rf"\boxed{{{value}}}"))
