r"""pytest tests/sources/test_answers.py: tables of answers, and properties that hold for any text.

The tables are grouped by the kind of writing that they show.
"""

import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import folder

from sources import answers, formulas, math_helper, tasks

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"  # more rows, where they are there

# ---- one Unicode form ----------------------------------------------------------------------------

NORMAL = [
    ("e\u0301", "é"),
    ("n\u0303andu\u0301", "ñandú"),
    ("−5", "-5"),
    ("3–5", "3-5"),
    ("1\u00a0000", "1 000"),
    ("１２", "12"),
    ("ﬁsh", "fish"),
    ("don’t", "don't"),
    ("90º", "90°"),
    ("½ cup", "1/2 cup"),
    ("2½", "2 1/2"),
    ("1⁄2", "1/2"),
    ("km²", "km2"),
    ("H₂O", "H2O"),
    ("Na⁺", "Na+"),
    ("10⁶", "10^6"),
    ("10⁻¹²", "10^{-12}"),
    ("(x)³", "(x)^3"),
    ("101₂", "101_2"),
    ("\u200bfoot\u00adnote", "footnote"),
]


@pytest.mark.parametrize("text, expected", NORMAL)
def test_the_normal_form(text, expected):
    assert answers.normal(text) == expected


@given(st.text() | st.text(alphabet="0123456789½¾²₂⁻ax −⁄º\u00a0"))
def test_the_normal_form_is_stable_and_the_same_for_both_compositions(text):
    form = answers.normal(text)
    assert answers.normal(form) == form
    for composition in ("NFC", "NFD"):
        assert answers.same_text(unicodedata.normalize(composition, text), text) == bool(
            text.strip()
        )


# ---- texts of your own, and SciQ -----------------------------------------------------------------

SAME_TEXTS = [
    ("A", "A"),
    ("!", "!"),
    ("😀", "😀"),
    (".", "."),
    ("the", "the"),
    ("Paris.", "paris"),
    ("  Two words\n", "two words"),
    ("C++.", "c++"),
    ("-5.", "-5"),
    ("−5", "-5"),
    ("cafe\u0301", "café"),
    ("½ cup", "1⁄2 cup"),
    ("km²", "km2"),
    ("10⁶", "10^6"),
    ("a\u2009b", "a b"),
]
OTHER_TEXTS = [
    ("-5", "5"),
    ("C++", "C"),
    ("x-1", "x+1"),
    ("a,b", "ab"),
    ("5%", "5"),
    ("$5", "5"),
    ("!", "?"),
    ("😀", "😢"),
    ("", "x"),
    ("x^2", "x2"),
    ("10⁶", "106"),
    ("2½", "21/2"),
    ("101₂", "1012"),
]


@pytest.mark.parametrize("predicted, expected", SAME_TEXTS)
def test_your_own_texts_may_differ_in_case_space_a_full_stop_and_unicode_form(predicted, expected):
    assert answers.same_text(predicted, expected)
    assert answers.same_text(expected, predicted)


@pytest.mark.parametrize("predicted, expected", OTHER_TEXTS)
def test_your_own_texts_differ_by_any_sign(predicted, expected):
    assert not answers.same_text(predicted, expected)


SAME_WORDS = [
    ("One more is two.\n#### two", "#### Two"),
    ("#### The nucleus.", "#### nucleus"),
    ("#### an atom", "#### atom"),
    ("#### 'the nucleus'", "#### nucleus"),
    ("#### **nucleus**", "#### nucleus"),
    ("#### carbon-dioxide", "#### carbon dioxide"),
    ("#### carbon-14", "#### carbon 14"),
    ("#### hydrogen (h)", "#### hydrogen h"),
    ("#### crust, mantle, core", "#### crust mantle core"),
    ("#### two\nand then something", "#### two"),
    ("oxygen\nmore text", "#### oxygen"),
    ("#### 1,000", "#### 1000"),
    ("#### 5 %", "#### 5%"),
    ("#### H₂O", "#### H2O"),
    ("#### Na⁺", "#### Na+"),
    ("#### Cl−", "#### Cl-"),
    ("#### a vitamin", "#### vitamin"),
]
OTHER_WORDS = [
    ("#### oxygen", "#### nitrogen"),
    ("", "#### oxygen"),
    ("####", "#### oxygen"),
    # signs with a meaning
    ("#### Na", "#### Na+"),
    ("#### Ca", "#### Ca2+"),
    ("#### H-", "#### H+"),
    ("#### 2-", "#### 2+"),
    ("#### 5", "#### -5"),
    ("#### -3", "#### +3"),
    ("#### 5", "#### 5%"),
    ("#### 35", "#### 3.5"),
    ("#### pH 74", "#### pH 7.4"),
    ("#### 106", "#### 10⁶"),
    ("#### C", "#### C#"),
    # an article at the front only
    ("#### vitamin", "#### vitamin A"),
    ("#### group", "#### group A"),
    ("#### plan", "#### plan a"),
]


@pytest.mark.parametrize("predicted, expected", SAME_WORDS)
def test_words_may_differ_in_dividing_punctuation_and_a_first_article(predicted, expected):
    assert answers.same_words(answers.after_hashes(predicted), answers.after_hashes(expected))


@pytest.mark.parametrize("predicted, expected", OTHER_WORDS)
def test_words_differ_by_signs_that_carry_meaning(predicted, expected):
    pair = answers.after_hashes(predicted), answers.after_hashes(expected)
    assert not answers.same_words(*pair)
    assert not answers.same_words(*reversed(pair))


# ---- numbers of grade-school problems ------------------------------------------------------------

HALF = Fraction(1, 2)
NUMBERS = [
    # where the answer stands
    ("She has 3 + 4 = 7.\n#### 7", 7),
    ("#### 12.\nQuestion: and 5 more?", 12),
    ("#### 7\n\nQuestion:Bo has 9 cups.\n#### 9", 7),
    (r"#### \boxed{5}", 5),
    (r"Thus $x = \boxed{42}$ and 7 is not.", 42),
    (r"so $\boxed 12$", 12),
    (r"so \boxed -7.", -7),
    ("The answer is 12.", 12),
    ("**Answer:** 4.", 4),
    (r"Answer: \(42\)", 42),
    ("Answer: *5*", 5),
    ("first 3, then 8, so 11", 11),
    ("It costs $2.50.", Fraction("2.5")),
    ("it is .5", HALF),
    ("The area is 12 cm^2.", 12),
    ("The area is 12 km²", 12),
    # the last mark that a number follows
    ("The answer is 42. This answer is correct.", 42),
    ("The answer is 42. This answer is correct because 6 * 7 = 43.", 42),
    ("The answer is 42.\nThe answer is right, as 3 x 15 is 45.", 42),
    ("The answer is 41. No, the answer is 42.", 42),
    ("The answer is that she has 5 apples", 5),
    # an equation, and what only contains one
    ("5 - 3 = 2", 2),
    ("The answer is 20 - 5 = 15", 15),
    ("#### 3 * 4 = 12", 12),
    ("#### 4 x 3 = 12", 12),
    ("Answer: 100 / 4 = 25 apples", 25),
    ("Answer: She has 3 + 4 = 7 apples", 7),
    ("The answer is x = 7.", 7),
    ("#### x = 3 + 4 = 7", 7),
    ("#### x_1 = 7", 7),
    ("#### 5 = x", 5),
    ("#### 20% of 50 = 10", 10),
    ("The answer is 3 x 5 = 15 and 15 / 3 = 5", 15),
    ("The answer is 42 because 6 * 7 = 43.", 42),
    ("The answer is 12. Since 3 * 4 = 13 is wrong.", 12),
    ("The answer is 12 (3 * 4 = 13)", 12),
    ("The answer is 12, since 3 * 4 = 13", 12),
    # units and words around it
    ("Answer: 5 apples and 2 pears", 5),
    ("So the answer is $1,000 in total.", 1000),
    ("#### 5km", 5),
    ("#### 5 km/h", 5),
    ("#### $5 a day", 5),
    ("#### 12 m^2", 12),
    ("20%", 20),
    ("#### 5!", 5),
    ("#### 5 million", 5 * 10**6),
    ("#### 1.5 million dollars", 1_500_000),
    # signs and currencies
    ("####-12", -12),
    ("#### $18", 18),
    ("#### -$3.50", Fraction("-3.5")),
    ("#### -£5", -5),
    ("#### £-5", -5),
    ("#### –5", -5),
    ("#### −€5.50", Fraction("-5.5")),
    ("#### –$5", -5),
    ("The answer is −12.", -12),
    (r"\boxed{−0.5}", -HALF),
    ("#### negative 5", -5),
    ("#### US$5", 5),
    ("#### 5€", 5),
    # thousands
    ("#### 1,234", 1234),
    ("#### 1,234,567.50 dollars", Fraction("1234567.5")),
    ("#### 1 000", 1000),
    ("#### 1\u00a0000", 1000),
    ("#### 1\u2009000", 1000),
    ("#### 1\u202f000\u202f000", 10**6),
    ("#### 1'000", 1000),
    (r"\boxed{1\,000}", 1000),
    (r"\boxed{1~000}", 1000),
    (r"\boxed{1\ 000}", 1000),
    (r"\boxed{1\;000}", 1000),
    (r"\boxed{70{,}000}", 70000),
    (r"#### 70,\!000", 70000),
    (r"$12{,}500$", 12500),
    # fractions and mixed numbers
    ("The answer is: 3/4", Fraction(3, 4)),
    (r"\boxed{\frac{1}{2}}", HALF),
    (r"\boxed{\frac12}", HALF),
    (r"\boxed{\dfrac1{2}}", HALF),
    (r"\boxed{-\dfrac{3}{4}}", Fraction(-3, 4)),
    (r"#### \frac{7}{2}", Fraction(7, 2)),
    (r"\boxed{1\frac{1}{2}}", Fraction(3, 2)),
    (r"\boxed{-1\frac12}", Fraction(-3, 2)),
    ("#### 1 1/2", Fraction(3, 2)),
    ("#### 11 5/6", Fraction(71, 6)),
    ("#### 2½", Fraction(5, 2)),
    ("#### ¾ cup", Fraction(3, 4)),
    ("#### 1 1⁄2 hours", Fraction(3, 2)),
    # powers
    (r"\boxed{10^6}", 10**6),
    (r"\boxed{10^{-2}}", Fraction(1, 100)),
    ("#### 10⁶", 10**6),
    (r"#### 2 \times 10^3", 2000),
    ("#### 2·10³", 2000),
    ("#### 2 x 10^3", 2000),
    (r"\boxed{2 \cdot 10^{3}}", 2000),
    ("#### 1e3", 1000),
    ("#### 2.5e2", 250),
]
SPACES = [chr(code) for code in range(0x3001) if unicodedata.category(chr(code)) == "Zs"]


@pytest.mark.parametrize("space", SPACES, ids=unicodedata.name)
def test_thousands_are_read_with_every_kind_of_space(space):
    assert answers.number(f"#### 1{space}000") == 1000
    assert answers.number(f"She has 1{space}234{space}567 stars.") == 1_234_567
    assert formulas.same_formula(f"12{space}345", "12345")
    assert answers.number(f"#### 5{space}3") is None


NO_NUMBERS = [
    "no number at all",
    "####",
    "#### nothing",
    "",
    "The answer is seven",
    "3/0",
    # too large to hold
    "1e100000000",
    "#### 5e-99999999",
    r"\boxed{1E9999}",
    r"\boxed{10^{99999}}",
    # a part of something else
    "#### 5x",
    "#### 5k",
    "#### 5 + x",
    "#### x^2=9",
    "#### 3x=12",
    r"#### \sqrt{16}",
    r"\boxed{5!}",
    r"\boxed{2\sqrt{3}}",
    r"\boxed{x\frac{1}{2}}",
    r"\boxed{2\frac{-1}{3}}",
    "#### -(5)",
    "#### <5",
    r"#### \pm 5",
    "x-5",
    # more than one number
    "#### 5 3",
    "#### 3,5",
    "#### 1,00",
    "#### 1.234,56",
    "#### 3:4",
    "#### 12_5",
    "#### 10-15",
    "#### 5 - 3",
    "#### $5-$10",
    "#### 5 apples - 3",
    "10 minus 5",
    "#### 5 or 6",
    "#### 5 and a half",
    "#### 5 and 1/2",
    "#### 20% of 50",
    "#### x = 5 or x = 6",
    "#### 3 3/2",
    "#### 3 feet 4 inches",
    "#### 5 hours and 30 minutes",
    r"\boxed{3 \text{ feet } 4 \text{ inches}}",
]


@pytest.mark.parametrize("text, expected", NUMBERS)
def test_numbers(text, expected):
    assert answers.number(text) == expected


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_not_understood_is_no_number(text):
    assert answers.number(text) is None
    assert not answers.same_number(answers.number(text), answers.number(text))


@given(st.integers(-(10**9), 10**9), st.sampled_from(["", ",", "_"]))
def test_any_number_is_found_behind_the_marks(value, grouping):
    text = f"{value:{grouping}}".replace("_", "\u202f")
    for wording in (
        "#### {}",
        "We say 3 and 4.\n#### {}",
        "The answer is {}.",
        "The answer is {}. This answer is correct.",
        "so it is {}",
        r"\boxed{{{}}}",
    ):
        assert answers.number(wording.format(text)) == value
    found = formulas.final_formula(rf"\boxed{{{text}}}")
    assert formulas.same_formula(found, str(value))
    assert not formulas.same_formula(found, str(value + 1))


# ---- where a formula stands ----------------------------------------------------------------------

BOXES = [
    (r"so $\boxed{3}$", "3"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\sqrt{\frac{a}{b}}+\{x\}}", r"\sqrt{\frac{a}{b}}+\{x\}"),
    (r"first \boxed{1}, then \boxed{2}", "2"),
    (r"\boxed {7}", "7"),
    (r"\fbox{9}", "9"),
    (r"\boxed{}", ""),
    (r"$\boxed 12$", "12"),
    (r"$\boxed -\frac{1}{2}$", r"-\frac{1}{2}"),
    (r"so \(\boxed x\).", "x"),
    (r"\boxed{1", None),
    (r"\boxed{1} and \boxed{2", "1"),
    (r"boxed{1}", None),
    (r"\boxedtext{1}", None),
    ("", None),
]


@pytest.mark.parametrize("text, expected", BOXES)
def test_boxes(text, expected):
    assert answers.boxed(text) == expected


FINAL_FORMULAS = [
    (r"thus \boxed{x^2} and $y$", "x^2"),
    ("The answer is $x^2 + 1$.", "x^2 + 1"),
    ("The answer is $42$. This answer is correct.", "42"),
    ("The answer is $x^2$. The answer is right since $3 = 3$.", "x^2"),
    ("The answer is even. This answer is obviously correct.", "even"),
    ("The answer is a + b. That answer is correct.", "a + b"),
    ("The answer is x.", "x"),
    ("The answer is 12. Next question", "12"),
    (r"The answer is \$5.", r"\$5"),
    ("The answer is $3$ or $4$.", "3  or  4"),
    ("**Answer:** 4.", "4"),
    ("Answer: Monday", "Monday"),
    (r"so it is \(42\)", "42"),
    (r"thus \[x = 3\]", "x = 3"),
    ("we get $3$ and $4$", "4"),
    ("it costs $5 and then $6", "6"),
    ("so it is 17", "17"),
    ("The area is 12 m²", "12"),
    ("no answer", ""),
]


@pytest.mark.parametrize("text, expected", FINAL_FORMULAS)
def test_final_formulas(text, expected):
    assert formulas.final_formula(text) == expected


# ---- two formulas --------------------------------------------------------------------------------

EQUAL = [
    # two powers are no tower
    ("x^{3}+2x^{2}", "x^3+2x^2"),
    (r"2^3\cdot 3^2", "72"),
    ("(x^2+1)^2", "(1+x^2)^2"),
    ("y^4+y^2", "y^2+y^4"),
    ("2^{2^3}", "256"),
    ("e^{x^2}", r"e^{x\cdot x}"),
    ("(x+1)^{999}", "(1+x)^{999}"),
    # mixed numbers
    ("11 5/6", r"\frac{71}{6}"),
    ("137 1/2", "137.5"),
    (r"137 \frac{1}{2}", "137.5"),
    ("2 1/3", "7/3"),
    ("2½", r"2\frac12"),
    (r"-2\frac12", "-2.5"),
    (r"(2\frac13, 1)", r"(\frac73,1)"),
    (r"2\frac13\pi", r"\frac73\pi"),
    (r"2^3\frac12", "4"),
    # units
    (r"12~\text{hours}", "12"),
    ("12 hours", r"12\ \text{hours}"),
    (r"25 \text{ ft}", "25"),
    (r"30\text{ miles per hour}", "30"),
    (r"5\mbox{ cm}^2", "5"),
    (r"5\text{ square feet}", r"5\text{ ft}^2"),
    (r"5\,\mathrm{m}", "5"),
    (r"\frac{3}{4}\text{ inch}", "0.75"),
    (r"\$7.50\text{ dollars}", "7.50"),
    (r"\$ 10", "10"),
    (r"90^\circ", "90"),
    (r"90^\circ", r"90\text{ degrees}"),
    (r"9\text{ a.m.}", "9"),
    (r"65 \text{ children tickets }", "65"),
    (r"3 \text{ feet } 4 \text{ inches}", "3 feet 4 inches"),
    # thousands
    (r"12\,345", "12345"),
    (r"1\,000\,000", "1000000"),
    ("5~000", "5000"),
    ("1\u202f000", "1000"),
    (r"1{,}000", "1,000"),
    (r"70,\!000", "70000"),
    ("(1 000, 2)", "(1000,2)"),
    # percent and powers of ten
    (r"12.5\%", "12.5"),
    (r"12.5\%", "0.125"),
    (r"50\%", r"\frac12"),
    (r"33.3\%", "33.3"),
    (r"0.5\%", "0.005"),
    ("1e3", "1000"),
    ("1.5E3", "1500"),
    ("2.5e-3", "0.0025"),
    (r"1.2\times10^{3}", "1200"),
    ("10⁶", "1000000"),
    # the imaginary unit
    ("i^2", "-1"),
    ("(1+i)^2", "2i"),
    ("i^3", "-i"),
    ("3+2i", "2i+3"),
    # names and relations
    ("x = 5", "5"),
    ("5=x", "5"),
    (r"\frac12=x", "0.5"),
    ("x = 3 + 4 = 7", "7"),
    ("f(x)=2x+1", "2x+1"),
    (r"\text{Area}=25", "25"),
    ("AB=5", "5"),
    ("y=3,x=2", "x=2,y=3"),
    ("x=2,y=3", "(2,3)"),
    ("(x,y)=(1,-2)", "(1,-2)"),
    (r"x=2\text{ or }x=3", "3, 2"),
    (r"x \in [-2,7]", "[-2,7]"),
    ("2>x>1", "1<x<2"),
    ("3>x>2", "2<x<3"),
    (r"5\ge x>1", r"1<x\leq5"),
    ("5>x", "x<5"),
    ("x>3,y>2", "y>2,x>3"),
    (r"x\le 3", r"x \leq 3"),
    (r"x \neq 3", "x≠3"),
    ("4x-5y=-50", "8x-10y=-100"),
    ("4x-5y=-50", r"y=\frac{4x+50}{5}"),
    # lists
    (r"\left( 1, 2 \right)", "(1,2)"),
    ("1,2", "(1,2)"),
    (r"\{1,2\}", "2, 1"),
    ("3,-2", "-2,3"),
    (r"19 \text{ and }43", "43, 19"),
    (r"\pm 3", "-3,3"),
    # other ways to write the same
    (r"\cfrac{25}{16}", r"\frac{25}{16}"),
    (r"\frac{\sqrt6}3", r"\frac{\sqrt{6}}{3}"),
    (r"\dfrac12", "0.5"),
    (".5", "0.5"),
    ("3.", "3"),
    ("−5", "-5"),
    ("x²", "x^2"),
    ("x₁", "x_1"),
    ("12_5", "12_{5}"),
    (r"\text{even}", "Even"),
    (r"\text{(C)}", "C"),
    (r"2 \cdot 3", "6"),
    (r"\log_2 8", "3"),
    (r"\frac{x}{2}", "0.5x"),
    ("5!", "120"),
    (r"\frac13", "0.333333"),
    (r"\sqrt2", "1.414214"),
    (r"\begin{pmatrix}1&\frac12\\3&4\end{pmatrix}", r"\begin{pmatrix}1&0.5\\3&4\end{pmatrix}"),
]
UNEQUAL = [
    # two numbers side by side are not one
    ("5 3", "53"),
    ("5 3", "8"),
    ("5 7", "57"),
    ("1 2 3", "123"),
    ("2 1/3", "21/3"),
    (r"3 \frac12", "31/2"),
    (r"2\frac{1}{3}", "2/3"),
    (r"3 \text{ feet } 4 \text{ inches}", "3"),
    ("3 feet 4 inches", "3"),
    # an equation is not the number in it
    ("x^2=9", "9"),
    ("x^2=9", "3"),
    ("3x=12", "12"),
    ("3x=12", "4"),
    ("3x=12", "x=4"),
    ("x+y=5", "5"),
    ("x<5", "5"),
    ("x=5", "y=5"),
    ("x=3,y=2", "x=2,y=3"),
    ("x>3,y>2", "x>2,y>3"),
    (r"x\le 3", r"x \geq 3"),
    ("x<5", r"x\le5"),
    (r"x\ne 3", "3"),
    ("4x-5y=-50", "4x-5y=-51"),
    # letters are variables
    ("5m", "5"),
    ("5 m", "5"),
    ("2h", "2"),
    ("5ab", "5"),
    ("A+a", "2a"),
    ("f'(x)", "f(x)"),
    (r"\text{even}", "neve"),
    # bases
    ("12_{5}", "12_{6}"),
    ("101_2", "101_3"),
    ("101_2", "101"),
    ("FF_{16}", "FF_{8}"),
    # kinds of lists
    ("(1,2)", r"\{1,2\}"),
    (r"\{a,b\}", "(a,b)"),
    ("[1,2]", r"\{1,2\}"),
    ("[1,2]", "(1,2)"),
    ("[2,1]", "(2,1)"),
    ("(1,2)", "(2,1)"),
    ("12", "1,2"),
    # decimals
    ("0.0000001", "0.0000002"),
    ("(0.0000001,1)", "(0.0000002,1)"),
    ("1.5e-20", "2.5e-20"),
    ("(1.5e-20,1)", "(2.5e-20,1)"),
    ("0.000001", r"\frac{1}{700000}"),
    (r"\frac13", "0.33"),
    (r"0.333\ldots", "0.333"),
    # units and percent
    (r"5\text{ feet}", r"5\text{ inches}"),
    (r"5\text{ cm}", r"5\text{ cm}^2"),
    (r"9\text{ a.m.}", r"9\text{ p.m.}"),
    (r"£5", r"\$5"),
    ("5 million", "5"),
    (r"5\text{ or more}", "5"),
    (r"\text{Monday}\text{ night}", r"\text{Monday}"),
    (r"50\%", r"0.5\%"),
    # the rest
    (r"7 \pmod{9}", "7"),
    ("5", "-5"),
    ("x^2", "x^3"),
    ("x_1", "x_2"),
    ("i", "-1"),
    ("", "1"),
    ("1", ""),
]


def in_boxes(*texts):
    return [formulas.final_formula(rf"so $\boxed{{{text}}}$") for text in texts]


@pytest.mark.parametrize("predicted, expected", EQUAL)
def test_equal_formulas(predicted, expected):
    assert formulas.same_formula(*in_boxes(predicted, expected))
    assert formulas.same_formula(*in_boxes(expected, predicted))


@pytest.mark.parametrize("predicted, expected", UNEQUAL)
def test_unequal_formulas(predicted, expected):
    assert not formulas.same_formula(*in_boxes(predicted, expected))
    assert not formulas.same_formula(*in_boxes(expected, predicted))


# ---- the time limit and the helper process -------------------------------------------------------

ENDLESS = [
    "(9999999)!",
    "10^{9}!",
    r"\binom{10000000}{5000000}",
    "2^{99!}",
    "(20!)!",
    "9^{9^{9^9}}",
    "10^{123456789}",
    "(x+1)^{999}",
    "(a+b+c+d+e)^{99}",
    "{" * 100 + "x+1" + "}" * 100,
    "(" * 99 + "x+1" + ")" * 99,
    r"\sqrt{" * 60 + "2" + "}" * 60,
]


@pytest.fixture
def short_limit(monkeypatch):
    monkeypatch.setattr(math_helper, "TIME_LIMIT", 0.3)
    math_helper.ask_helper.cache_clear()
    yield
    math_helper.ask_helper.cache_clear()


@pytest.mark.parametrize("formula", ENDLESS)
def test_a_formula_without_an_end_is_compared_as_text(formula, short_limit):
    assert formulas.same_formula(formula, "x+2") is False
    started = time.monotonic()
    assert formulas.same_formula(formula, "x+2") is False  # remembered
    assert formulas.same_formula(formula, formula) is True
    assert time.monotonic() - started < 0.3


def test_the_time_limit_holds_and_the_next_comparison_is_right():
    assert formulas.same_formula("a + 2", "2 + a")  # the helper is running
    math_helper.ask_helper.cache_clear()
    started = time.monotonic()
    assert not formulas.same_formula("10^{9}!", "3")
    assert time.monotonic() - started < math_helper.TIME_LIMIT + 5
    assert formulas.same_formula("a + 3", "3 + a")


def test_long_formulas_are_compared_as_text():
    long = "+".join(["x"] * 400)
    assert formulas.same_formula(long, long.replace("+", " + "))
    assert not formulas.same_formula(long, "400x")


def test_threads_share_the_helper():
    pairs = [(f"{k}x + 1", f"1 + {k + k % 2}x") for k in range(40)]
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(lambda pair: formulas.same_formula(*pair), pairs))
    assert verdicts == [k % 2 == 0 for k in range(40)]


def test_after_an_interrupt_no_reply_is_taken_for_that_of_another_question(monkeypatch):
    assert math_helper.HELPER.ask("b + 1", "1 + b", 6) is True

    def interrupted(line, limit):
        math_helper.HELPER.process.stdin.write(line + "\n")
        math_helper.HELPER.process.stdin.flush()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(math_helper.HELPER, "reply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            math_helper.HELPER.ask("b + 2", "2 + b", 6)
    assert math_helper.HELPER.ask("b + 2", "b + 3", 6) is False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_process_has_a_helper_of_its_own():
    assert formulas.same_formula("c + 1", "1 + c")
    helper = math_helper.HELPER.process.pid
    child = os.fork()
    if child == 0:
        right = formulas.same_formula("c + 2", "2 + c") and math_helper.HELPER.process.pid != helper
        math_helper.HELPER.stop()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert formulas.same_formula("c + 3", "3 + c")
    assert math_helper.HELPER.process.pid == helper


def test_without_math_verify_there_is_a_sentence(monkeypatch, tmp_path):
    from support.cli import UserError

    for module in ("math_verify", "sympy"):
        (tmp_path / f"{module}.py").write_text("raise ImportError('it is not there')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    helper = math_helper.Helper()
    with pytest.raises(UserError, match="it is not there.*install the packages"):
        helper.ask("x", "y", 6)
    assert helper.process is None


SCRIPT = """
import sys, time
from sources import formulas, math_helper
print(formulas.same_formula("x + 1", "1 + x"), math_helper.HELPER.process.pid, flush=True)
if sys.argv[1] == "busy":
    math_helper.TIME_LIMIT = 600
    formulas.same_formula("10^{9}!", "3")
if sys.argv[1] == "idle":
    time.sleep(600)
"""


def is_running(pid):
    state = Path(f"/proc/{pid}/stat")
    if state.parent.parent.joinpath("self").exists():
        return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
@pytest.mark.parametrize("state", ["ended", "idle", "busy"])
def test_a_plain_script_needs_no_main_and_leaves_no_process_behind(state, tmp_path):
    """However it ends: by itself, or killed, while the helper waits or computes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, state]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as script:
        verdict, pid = script.stdout.readline().split()
        if state != "ended":
            time.sleep(0.5)
            assert is_running(int(pid))
            script.kill()
    assert verdict == "True"
    patience = time.monotonic() + math_helper.TIME_LIMIT + 10
    while is_running(int(pid)) and time.monotonic() < patience:
        time.sleep(0.1)
    assert not is_running(int(pid))


# ---- any text ------------------------------------------------------------------------------------

HARD = st.text() | st.text(alphabet="0123456789.,/-+$%#\\{} \nboxedfracsqrtansweri:½²^_=")


@given(HARD, HARD)
@settings(max_examples=60, deadline=None)
def test_no_text_breaks_a_parser(first, second):
    answers.same_number(answers.number(first), answers.number(second))
    formulas.same_formula(formulas.final_formula(first), formulas.final_formula(second))
    answers.same_words(answers.after_hashes(first), answers.after_hashes(second))
    number = answers.number(first)
    assert answers.same_number(number, number) == (number is not None)
    assert answers.same_text(first, first) == bool(first.strip())


LONG = [
    "1 ",
    "{",
    "- ",
    r"\boxed{",
    "answer is ",
    "answer:",
    r"\(",
    ",\n",
    "(",
    "1, ",
    "½",
    "#### 1 a ",
]


@pytest.mark.parametrize("piece", LONG)
def test_long_texts_are_read_in_no_time(piece):
    text = piece * 2000
    started = time.monotonic()
    answers.number(text)
    formulas.final_formula(text)
    answers.same_words(text, text + "1")
    answers.same_text(text, text + "1")
    formulas.same_formula(text, text + "1")
    assert time.monotonic() - started < 5


# ---- the benchmarks' own solutions ---------------------------------------------------------------

MORE_ROWS = {
    "gsm8k": {"question": "q", "answer": "One.\n\nTwo.\n#### 1,234"},
    "gsm8ks": {"question": "q", "answer": "A\n \nB\n#### −5"},
    "hmath-algebra": {"problem": "q", "solution": "First.\n\n\nThen $\\boxed{\\frac12}$."},
    "sciq": {"question": "q", "support": "A.\n\nB.", "correct_answer": "c++"},
}
PHRASINGS = (
    "So the final answer is ${}$.",
    r"Hence \(\boxed{{{}}}\).",
    "**Answer:** {} in total",
    "First 3 * 4 = 12. The answer is: {}. This answer is correct.",
    "That makes x = {}",
)


def gold_responses(task, tmp_path):
    responses = [task.read_row(MORE_ROWS[task.name]).answer]
    places = [folder(tmp_path / "samples")]
    if SHARED.exists():
        places.append(SHARED)
    for place in places:
        for path in sorted((place / (task.folder or task.name)).glob("*.jsonl")):
            for line in path.read_text("utf-8").splitlines():
                responses.append(task.read_row(json.loads(line)).answer)
    return responses


@pytest.mark.parametrize("name", MORE_ROWS)
def test_reference_solutions_score_100_percent(name, tmp_path):
    """Each gold response is treated as evaluation treats a model's: up to a blank line, parsed."""
    assert set(MORE_ROWS) == {name for name, task in tasks.TASKS.items() if not task.labels}
    task = tasks.TASKS[name]
    for response in gold_responses(task, tmp_path):
        text = f" {response}".strip().split("\n\n")[0]
        assert task.same(task.parse(text), task.parse(response)), response


def test_grade_school_answers_in_other_words_score_100_percent(tmp_path):
    for response in gold_responses(tasks.TASKS["gsm8k"], tmp_path)[::5]:
        reasoning, _, written = response.rpartition("####")
        expected = answers.number(response)
        assert expected is not None
        for phrasing in PHRASINGS:
            text = reasoning + phrasing.format(written.strip())
            assert answers.same_number(answers.number(text), expected), text


# ---- texts that would take for ever --------------------------------------------------------------

SLASHES = [
    "/".join(["1"] * 99) + " @",
    "1/1 / " * 30 + "@",
    "1 / " * 45 + "@",
    "1/" * 95 + "@",
    "The answer is " + "/".join(["1"] * 60) + " dollars per day for each",
]


@pytest.mark.parametrize("text", SLASHES, ids=range(len(SLASHES)))
def test_many_slashes_are_read_at_once(text):
    """A slash that could be read in two ways would double the time with each one."""
    start = time.perf_counter()
    answers.number(text)
    answers.equation_result(text)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("text", ["99999^999", "9999^900 * 9999^900", "-99999^-999"])
def test_a_number_that_cannot_be_written_is_none(text):
    assert answers.number(f"#### {text}") is None
    str(answers.number("#### 9999^600"))
