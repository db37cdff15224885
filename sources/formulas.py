"""Formulas in free text: the one that is a response's answer, and when two are the same.

Numbers are compared exactly, by `sources.answers`; other formulas by math-verify (`math_helper`).
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from sources.answers import (
    COMMAND_END,
    GROUPED,
    LARGE,
    MEASURES,
    NAME_IS,
    TIDY,
    boxed,
    marked_answer,
    normal,
    number_in,
    plain,
    replaced,
    to_number,
)
from sources.math_helper import ask_helper

# How much a sentence behind a mark looks like an answer, the best first.
FORMULA_FOLLOWS = (
    re.compile(rf"\W*{NAME_IS}\d|[^\w$\\]*[$\\]|\W*(?!a\s|I\s)[A-Za-z](?![A-Za-z])"),
    re.compile(r".*[\d$\\^=+]"),
    re.compile(r"(?!.*\b(?:in)?(?:correct|right|wrong|reasonable|verified)\b)", re.IGNORECASE),
    re.compile(r""),
)
LETTERS_TOO = r"\w)\]}"  # in a formula `x²` is a power, and `x₁` has an index
DOLLARS = re.compile(
    r"(?<!\\)\$([^$]+)(?<!\\)\$(?!\d)|\\\((.{1,999}?)\\\)|\\\[(.{1,999}?)\\\]", re.DOTALL
)
SEVERAL = re.compile(r"\W*\$[^$]+\$(?:\s*(?:,|and|or|,\s*and|,\s*or)\s*\$[^$]+\$)+\W*")


def final_formula(text: str) -> str:
    r"""The final answer of a worked solution in LaTeX, as text; empty where there is none.

    It is what the last box holds; without a box the formula behind the last "the answer is" that
    one follows; without such a mark the last formula between dollars, else the last number.
    """
    text = normal(text, LETTERS_TOO)
    found = boxed(text)
    if found is None:
        marked = marked_answer(text, FORMULA_FOLLOWS)
        found = last_formula(text) if marked is None else marked_formula(marked)
    return found.lstrip(" *$\n").rstrip(" .*$\n")


def formulas_in(text: str) -> list[str]:
    formulas = []
    for match in DOLLARS.finditer(text):
        formulas.append(match[1] or match[2] or match[3])
    return formulas


def marked_formula(sentence: str) -> str:
    """The first formula of a sentence, all of `$3$ or $4$`, else the sentence."""
    if SEVERAL.fullmatch(sentence):
        return sentence.replace("$", " ")
    formulas = formulas_in(sentence)
    return formulas[0] if formulas else sentence


def last_formula(text: str) -> str:
    formulas = formulas_in(text)
    return formulas[-1] if formulas else number_in(plain(text), last=True).written


AND = r"(?:,\s*)?(?:\\text\s*\{[\s,]*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))"
FORMULA = (  # (pattern, replacement) behind those of TIDY
    (AND, ","),
    (rf"\\(?:leq|leqslant|le){COMMAND_END}|≤|<=", r"\\le "),
    (rf"\\(?:geq|geqslant|ge){COMMAND_END}|≥|>=", r"\\ge "),
    (rf"\\neq?{COMMAND_END}|≠|!=", r"\\ne "),
    (rf"\\lt{COMMAND_END}", "<"),
    (rf"\\gt{COMMAND_END}", ">"),
    (rf"\\in{COMMAND_END}|∈", "="),
    (r"(?<!\\)\$", ""),
)
NOT_UNITS = {*LARGE, "or", "more", "less", "than", "to", "if", "when", "for", "is", "are", "where"}
# A number or a formula, then a unit: words in \text{}, or plain words behind a digit or a brace.
WITH_UNIT = re.compile(
    r"""(?P<value>.*\S) \s* \\text\s*\{ (?P<words>[^{}\d]*[A-Za-z][^{}\d]*) \}
            \s* (?P<power>\^\s*\{?\d\}?)? \s*
      | (?P<plain_value>.*[\d})]) \s+ (?P<plain_words>[A-Za-z][A-Za-z. ]+)
            (?P<plain_power>\^\{?\d\}?)? \s*
    """,
    re.VERBOSE | re.DOTALL,
)


CURRENCY = re.compile(r"\\\$|[£€¥]")
CURRENCY_NAMES = {r"\$": "dollars"}


@dataclass(frozen=True)
class Formula:
    r"""An answer taken apart: `x = 5\text{ cm}` has the name x, the value 5, the unit centimeters.

    `whole` is the formula with its name. An unknown unit is empty, and so is a name that is none.
    """

    whole: str
    name: str
    value: str
    unit: str
    percent: bool


def read_formula(text: str) -> Formula:
    whole = replaced(replaced(normal(text, LETTERS_TOO), TIDY), FORMULA)
    currency = CURRENCY.search(whole)
    whole, unit = split_unit(CURRENCY.sub("", whole).strip())
    if currency and not unit:
        unit = CURRENCY_NAMES.get(currency[0], currency[0])
    whole = whole.rstrip(" .,")
    percent = whole.endswith("%")
    whole = ascending(whole.removesuffix("%").rstrip())
    name, value = assignment(whole)
    return Formula(whole, name, value, unit, percent)


def split_unit(text: str) -> tuple[str, str]:
    """The text without the unit at its end, and the unit's name, empty where it is not known."""
    match = WITH_UNIT.fullmatch(text)
    if not match or re.search(r"\\text\s*\{[^{}]*\}\s*$", match["value"] or ""):
        return text, ""
    in_text = match["words"] is not None
    words = (match["words"] if in_text else match["plain_words"]).lower().replace(".", "").split()
    # Plain letters are a product of variables unless they are a word.
    is_word = in_text or words[0] in MEASURES and len(words[0]) > 1 or len(words[0]) > 3
    if not is_word or any(word in NOT_UNITS for word in words):
        return text, ""
    power = re.sub(r"\D", "", match["power"] or match["plain_power"] or "")
    return match["value"] or match["plain_value"], unit_name(words, power)


def unit_name(words: list[str], power: str) -> str:
    """`["square", "feet"]` and `["ft"], "2"` -> "feet2"; empty where a word is unknown."""
    powers = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}
    names = []
    for word in words:
        if word in powers:
            power = powers[word]
        elif word in MEASURES:
            names.append(MEASURES[word])
        else:
            return ""
    return " ".join(names) + power


ORDER = re.compile(r"(<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z]))")
TURNED = {">": "<", r"\ge": r"\le"}


def ascending(text: str) -> str:
    """`2 > x > 1` -> `1 < x < 2`; a text with other relations as it is."""
    pieces = at_commas(text)
    if len(pieces) > 1:
        in_order = all(ORDER.search(piece) for piece in pieces)
        return ", ".join(map(ascending, pieces)) if in_order else text
    parts = ORDER.split(text)
    if len(parts) == 1 or not all(sign in TURNED for sign in parts[1::2]):
        return text
    turned = [TURNED[part] + " " if part in TURNED else part.strip() for part in parts]
    return "".join(reversed(turned))


EQUALS = re.compile(r"(?<![<>!\\])=")
NAME = re.compile(
    r"""\\text\s*\{[^{}]*\}                                             # \text{Area}
      | [A-Za-z](?:_\{?\w+\}?)?(?:\s*\(\s*[A-Za-z]\s*\))?              # x, x_1, f(x)
      | \\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega)(?![A-Za-z])
      | (?:m\s*)?(?:\\angle\s*)?[A-Z]{1,3} | [A-Za-z][a-z]{3,}          # \angle ABC, AB, Area
      | \(\s*[A-Za-z](?:\s*,\s*[A-Za-z])+\s*\)                          # (x, y)
    """,
    re.VERBOSE,
)


def assignment(text: str) -> tuple[str, str]:
    """The name and the value of `x = 5`, `5 = x`, `x = 2, x = 3` and `x = 2, y = 3`.

    The name is empty where the text is no assignment: `x^2 = 9` and `3x = 12` keep their relation.
    """
    pieces = at_commas(text)
    if sum("=" in piece for piece in pieces) < 2:
        return one_assignment(text)
    values_of = {}
    for piece in pieces:
        name, value = one_assignment(piece)
        if not name:
            return "", text
        values_of.setdefault(name, []).append(value)
    names = sorted(values_of)
    values = []
    for name in names:
        values.extend(values_of[name])
    joined = ", ".join(values)
    return ", ".join(names), joined if len(names) == 1 else f"({joined})"


def one_assignment(text: str) -> tuple[str, str]:
    sides = [side.strip() for side in EQUALS.split(text)]
    if len(sides) == 1:
        return "", text
    if NAME.fullmatch(sides[-1]) and not NAME.fullmatch(sides[0]):
        sides.reverse()
    if NAME.fullmatch(sides[0]):
        return sides[0], sides[-1]
    return "", text if has_variable(sides[0]) else sides[-1]


DEPTH = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


def at_commas(text: str) -> list[str]:
    """The text in pieces, cut at the commas outside brackets."""
    pieces = [""]
    depth = 0
    for character in text:
        depth += DEPTH.get(character, 0)
        if character == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return [piece.strip() for piece in pieces]


def has_variable(text: str) -> bool:
    return bool(re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)))


def is_relation(text: str) -> bool:
    return bool(re.search(r"[=<>]|\\(?:le|ge|ne)(?![A-Za-z])", text))


LONGEST_FORMULA = 500  # characters


def same_formula(predicted: str, expected: str) -> bool:
    """Whether two formulas mean the same.

    Numbers are compared exactly, formulas by math-verify; what it cannot read, or not within
    `TIME_LIMIT`, is compared as text. Raises UserError where math-verify cannot be loaded.
    """
    if max(len(predicted), len(expected)) > LONGEST_FORMULA:
        return as_text(normal(predicted)) == as_text(normal(expected))
    first = read_formula(predicted)
    second = read_formula(expected)
    if not first.value or not second.value:
        return False
    if first.unit and second.unit and first.unit != second.unit:
        return False
    if as_text(first.whole) == as_text(second.whole) and first.percent == second.percent:
        return True
    named = first.name and second.name and first.name != second.name
    if is_relation(first.value) or is_relation(second.value) or named:
        return same_relation(first, second)
    return same_value(first, second)


def as_text(text: str) -> str:
    r"""What is compared of a formula that is a text: without `\text`, case and needless spaces."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    if "\\" not in text and re.search("[A-Za-z]{3}", text):
        text = text.casefold()
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)
    return re.sub(r"^\(([A-Za-z])\)$", r"\1", text)


def same_relation(first: Formula, second: Formula) -> bool:
    """Whether `4x - 5y = 1` and `8x - 10y = 2` say the same; `3x = 12` is neither 12 nor x = 4."""
    if not (is_relation(first.whole) and is_relation(second.whole)):
        return False
    for side in (first, second):
        if side.name and not has_variable(side.value):
            return False
    return says_same(first.whole, second.whole)


def same_value(first: Formula, second: Formula) -> bool:
    one = to_number(plain(first.value))
    other = to_number(plain(second.value))
    if one is not None and other is not None:
        if close(one, other, decimals(first.value, second.value)):
            return True
        # 50% is 50, as people write it, and 0.5; it is not 0.5%.
        return first.percent != second.percent and share(one, first) == share(other, second)
    brackets = {bracket_kind(first.value), bracket_kind(second.value)} - {""}
    return len(brackets) < 2 and says_same(first.value, second.value)


def share(value: Fraction, formula: Formula) -> Fraction:
    return value / 100 if formula.percent else value


def decimals(*texts: str) -> int:
    """The digits behind the point that these numbers have, at most, and 6 at least."""
    behind_point = [0]
    small = [0]
    for text in texts:
        behind_point += [len(digits) for digits in re.findall(r"\.(\d+)", text)]
        small += [int(power) for power in re.findall(r"(?:10\^\{?|[eE])-(\d{1,3})", text)]
    return max(6, max(behind_point) + max(small))


def close(first: Fraction, second: Fraction, places: int) -> bool:
    """Equal, or one is the other rounded: 0.333333 is 1/3 (6 places, and 5 digits that count)."""
    if first == second:
        return True
    alike = abs(first - second) * 10**5 <= max(abs(first), abs(second))
    return alike and round(first, places) == round(second, places)


def bracket_kind(text: str) -> str:
    r"""`(,)`, `[,)`, `\{,}`: the brackets around a list; empty where none are."""
    match = re.fullmatch(r"(\(|\[|\\\{).*,.*(\)|\]|\\\})", text, re.DOTALL)
    return f"{match[1]},{match[2]}" if match else ""


# What math-verify takes for another formula, or for a product of letters: compared as text alone.
NO_WORDS = r"(?:sqrt|infinity|[pbvBV]?matrix|cases|array)(?![A-Za-z])"
TEXT_ONLY = re.compile(
    "|".join(
        (
            r"(?<![_^\d.])\d[\d.]*\s+\d",  # 5 3
            r"\d_",  # 101_2
            rf"\\text|(?<![A-Za-z\\])(?!{NO_WORDS})[A-Za-z]{{4,}}",  # even
            r"['\"]|\.\s*\.|\\[lc]?dots|\d\.\d+\.",  # f'(x), 0.33..., 1.2.3
            r"\\?[pb]?mod(?![A-Za-z])",
        )
    )
)


def says_same(predicted: str, expected: str) -> bool:
    """What math-verify says of two formulas; False where it must not or cannot say."""
    sides = [for_sympy(side) for side in (expected, predicted)]
    if any(TEXT_ONLY.search(side) for side in sides):
        return False
    return ask_helper(*sides, decimals(*sides))


def for_sympy(text: str) -> str:
    """A formula in the one way to write numbers that math-verify reads as they are meant."""
    text = re.sub(rf"(?<![\d.,]){GROUPED}", spaces_out, text)
    text = re.sub(r"(?<![\w.])(\d+\.?\d*)[eE]([-+]?\d{1,3})(?!\w)", r"\1 \\cdot 10^{\2}", text)
    return re.sub(
        r"(?<![\w.^_}\\/])(\d+) *(?:\\frac\{(\d+)\}\{(\d+)\}|(?<= )(\d+)/(\d+)(?![\d/^]))",
        mixed_as_sum,
        text,
    )


def spaces_out(match: re.Match) -> str:
    return re.sub("[ ']", "", match[0])


def mixed_as_sum(match: re.Match) -> str:
    whole, *parts = [part for part in match.groups() if part]
    if int(parts[0]) >= int(parts[1]):
        return match[0]
    return rf"({whole}+\frac{{{parts[0]}}}{{{parts[1]}}})"
