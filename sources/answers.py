"""Answer parsing: free text -> the answer in it, and when two answers are the same.

    after_hashes, number, final_formula     find the answer in a response
    same_text, same_words, same_number, same_formula     compare two answers

No text makes these functions raise or hang. Texts are compared in one Unicode form (`normal`).
Numbers are read here and compared exactly. Other formulas are compared by math-verify, which runs
in a helper process with a time limit, because a short formula can keep sympy busy for ever.
What is not understood is no number; it is never another number.
"""

import atexit
import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

# ---- one Unicode form, and texts -----------------------------------------------------------------

RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"
LOWERED = "₀₁₂₃₄₅₆₇₈₉₊₋"
VULGAR = "¼-¾⅐-⅞"
# Signs that look alike and that NFKC keeps apart; zero-width spaces and soft hyphens go.
SIGNS = str.maketrans("‐‒–−⁄∕‘’“”º\u1680", "----//''\"\"° ", "\u200b\u2060\ufeff\u00ad")


def normal(text: str, scripts_after: str = r"\d)\]") -> str:
    """The text in one Unicode form: NFKC, except where NFKC would make another number of it.

    A vulgar fraction stays apart from the digit before it (`2½` -> `2 1/2`). A raised or lowered
    digit behind one of `scripts_after` keeps its sign (`10⁶` -> `10^6`, `101₂` -> `101_2`).
    Behind a letter it is a plain digit (`km²` -> `km2`, `H₂O` -> `H2O`), as it is usually typed.
    """
    text = re.sub(rf"(?<=\d)(?=[{VULGAR}])|(?<=[{VULGAR}])(?=\d)", " ", text)
    text = re.sub(rf"(?<=[{scripts_after}])(?:[{RAISED}]+|[{LOWERED}]+)", typed_script, text)
    return unicodedata.normalize("NFKC", text.translate(SIGNS)).translate(SIGNS)


def typed_script(match: re.Match) -> str:
    sign = "^" if match[0][0] in RAISED else "_"
    digits = unicodedata.normalize("NFKC", match[0])
    return sign + (digits if len(digits) == 1 else f"{{{digits}}}")


def same_text(predicted: str, expected: str) -> bool:
    """Equal but for case, surrounding white space and a final full stop: other signs count."""
    first = folded(predicted)
    second = folded(expected)
    return bool(second) and first == second


def folded(text: str) -> str:
    text = normal(text).strip() or text.strip()
    return (text.removesuffix(".").strip() or text).casefold()


# Punctuation that only divides words. Signs with a meaning stay: `Na+`, `H-`, `-5`, `5%`, `3.5`.
DIVIDERS = re.compile(
    r"""(?<!\d)[.,:] | [.,:](?!\d)        # not the point of 3.5 or the colon of 3:1
      | [;!?"'()\[\]{}*_`]
      | (?<=[^\W\d])-(?=\w)               # carbon-14; the minus of H- and -5 stays
      | (?<!\S)-(?!\S)                    # a dash between spaces
    """,
    re.VERBOSE,
)


def same_words(predicted: str, expected: str) -> bool:
    """Equal but for case, dividing punctuation and an article at the front."""
    first = plain_words(predicted)
    second = plain_words(expected)
    return first == second if first and second else same_text(predicted, expected)


def plain_words(text: str) -> str:
    text = normal(text).lower().strip(" \t\n\"'([*_`")
    text = re.sub(r"^(?:an?|the)\s+(?=\S)", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = " ".join(DIVIDERS.sub(" ", text).split())
    return re.sub(" (?=[%°])", "", text)


# ---- where the answer stands ---------------------------------------------------------------------


def after_hashes(text: str) -> str:
    """The text after the first `####`, up to the line's end; without one, the first line."""
    before, mark, after = text.partition("####")
    return (after if mark else before).strip().partition("\n")[0].strip()


BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")


def boxed(text: str) -> str | None:
    r"""What the last complete `\boxed{...}`, `\fbox{...}` or bare `\boxed 12` holds, or None."""
    found = None
    ends = closing_braces(text)
    for box in BOX.finditer(text):
        start = box.end()
        if not text.startswith("{", start):
            content = bare(text[start:])
        elif start in ends:
            content = text[start + 1 : ends[start]]
        else:
            content = None
        if content is not None:
            found = content
    return found


def closing_braces(text: str) -> dict[int, int]:
    """{place of a brace: place of the brace that closes it}."""
    ends = {}
    opened = []
    for place, character in enumerate(text):
        if character == "{":
            opened.append(place)
        elif character == "}" and opened:
            ends[opened.pop()] = place
    return ends


def bare(text: str) -> str | None:
    r"""The first word of the text, without the `$`, `\)` or full stop that ends it, or None."""
    word = re.match(r"[^\s$]+", text)
    return re.sub(r"(?:\\[)\]]|[.,;])+$", "", word[0]) or None if word else None


ANSWER_IS = re.compile(r"answer(?:\s+is|\W*:)", re.IGNORECASE)
SENTENCE_END = re.compile(r"\.(?:\s|\W{0,3}$)|\n")
LONGEST_SENTENCE = 1000  # characters
NAME_IS = r"(?:[A-Za-z](?:\([a-z]\))?\s*=\W*)?"
# How much a sentence behind a mark looks like an answer, the best first.
NUMBER_FOLLOWS = (re.compile(rf"\W*{NAME_IS}\d"), re.compile(r".*\d"))
FORMULA_FOLLOWS = (
    re.compile(rf"\W*{NAME_IS}\d|[^\w$\\]*[$\\]|\W*(?!a\s|I\s)[A-Za-z](?![A-Za-z])"),
    re.compile(r".*[\d$\\^=+]"),
    re.compile(r"(?!.*\b(?:in)?(?:correct|right|wrong|reasonable|verified)\b)", re.IGNORECASE),
    re.compile(r""),
)


def marked_answer(text: str, follows: Iterable[re.Pattern]) -> str | None:
    """The sentence behind the last "the answer is" that an answer follows, or None.

    `follows` says what an answer looks like, the most telling pattern first.
    """
    sentences = []
    for mark in ANSWER_IS.finditer(text):
        tail = text[mark.end() :][:LONGEST_SENTENCE].lstrip(" \t\n:*")
        sentences.append(SENTENCE_END.split(tail, maxsplit=1)[0].strip())
    for pattern in follows:
        for sentence in reversed(sentences):
            if pattern.match(sentence):
                return sentence
    return None


# ---- LaTeX ---------------------------------------------------------------------------------------

COMMAND_END = r"(?![A-Za-z])"
TIDY = (  # (pattern, replacement), in this order: one way to write what LaTeX has several ways for
    (rf"\\(?:left|right){COMMAND_END}\s*\.", ""),
    (rf"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle){COMMAND_END}\s*|\\!", ""),
    (r"\{,\}", ","),
    (rf"\\q?quad{COMMAND_END}|(?<!\\)\\[,;:\s]|~", " "),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\\(?:mbox|text(?:rm|normal|bf|it)|math(?:rm|bf|it))\s*\{", r"\\text{"),
    (r"\\text\s*\{([^{}A-Za-z]*)\}", r" \1 "),  # a number in bold
    (r"\\frac\s*(\d)", r"\\frac{\1}"),
    (r"(\\frac\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree|°", r"\\text{ degrees}"),
    (r"\\%|\\text\s*\{\s*percent\s*\}|\bpercent\b", "%"),
)
PLAIN = (  # a number in LaTeX -> the same in plain signs
    (r"\\\$|[£€¥₹₩₽]", "$"),
    (r"(?<!\S)\*+(?=\S)|(?<=\S)\*+(?![\w(\\$*])", ""),  # Markdown's bold and italics
    (r"(?<=\d)\*\*(?=\d)", "^"),
    (rf"\\(?:cdot|times){COMMAND_END}|[×·⋅]|(?<=\d)\s*x(?=\s*10\s*\^)", "*"),
    (rf"\\div{COMMAND_END}|÷", "/"),
    (rf"\\pm{COMMAND_END}", "±"),
    (r"\\text\s*\{([^{}]*)\}", r" \1 "),
    (r"\^\s*\{\s*([-+]?\d+)\s*\}", r"^\1"),
    (r"(\d\s+[A-Za-z]+|\d[A-Za-z]{2,})\s*\^\s*[23](?!\d)", r"\1"),  # 12 cm^2
    (r"(?<![A-Za-z)}])\\frac\{([^{}]*)\}\{([^{}]*)\}", r" \1/\2"),
    (r"\b(?:minus|negative)\s+(?=[$\d.])", "-"),
    (r"[-=]>|[→⇒]", " "),
)


def replaced(text: str, table: tuple) -> str:
    for pattern, replacement in table:
        text = re.sub(pattern, replacement, text)
    return text


def plain(text: str) -> str:
    r"""A number in LaTeX in plain signs: `\frac12` -> `1/2`, `2 \times 10^{3}` -> `2 * 10^3`."""
    return re.sub(" {2,}", " ", replaced(replaced(text, TIDY), PLAIN))


# ---- numbers -------------------------------------------------------------------------------------

# Thousands are grouped by a comma, a space or an apostrophe, the same one throughout.
GROUPED = r"[1-9]\d{0,2}(?:(?:,\d{3})+|(?: \d{3})+|(?:'\d{3})+)(?!\d)"
AMOUNT = rf"(?:(?:{GROUPED}|\d+)(?:\.\d+)?|\.\d+)"
MIXED = re.compile(r"(\d+) +([1-9]\d*)\s?/\s?(\d+)")
FRACTION = re.compile(rf"({AMOUNT})\s?/\s?({AMOUNT})")
POWER = re.compile(rf"({AMOUNT})\s?\^\s?([-+]?\d{{1,3}})")
DECIMAL = re.compile(rf"({AMOUNT})(?:[eE]([-+]?\d{{1,3}}))?")
LARGE = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
LONGEST_NUMBER = 200  # characters


def to_number(text: str) -> Fraction | None:
    """The value of a text that is a number and nothing else, or None.

    Understood: `1,234`, `1 234`, `-$3.50`, `3/4`, `2 1/2`, `1e3`, `10^6`, `2*10^3`, `5 million`.
    """
    signed = re.fullmatch(r"\s*([-+]?)\s*(\S.*?)\s*", text.replace("$", ""))
    if not signed or len(text) > LONGEST_NUMBER:
        return None
    body, *words = re.split(rf"\s+(?=(?:{'|'.join(LARGE)})\b)", signed[2])
    if any(word not in LARGE for word in words):
        return None
    value = Fraction(-1 if signed[1] == "-" else 1)
    for word in words:
        value *= LARGE[word]
    for factor in body.split("*"):
        part = factor_value(factor.strip())
        if part is None:
            return None
        value *= part
    return value


def factor_value(text: str) -> Fraction | None:
    """The value of a number without sign, currency or product, or None."""
    if mixed := MIXED.fullmatch(text):
        whole, top, bottom = map(int, mixed.groups())
        if top < bottom:
            return whole + Fraction(top, bottom)
    if fraction := FRACTION.fullmatch(text):
        bottom = decimal(fraction[2])
        return decimal(fraction[1]) / bottom if bottom else None
    if power := POWER.fullmatch(text):
        base, exponent = decimal(power[1]), int(power[2])
        return base**exponent if base or exponent >= 0 else None
    if amount := DECIMAL.fullmatch(text):
        return decimal(amount[1]) * Fraction(10) ** int(amount[2] or 0)
    return None


def decimal(text: str) -> Fraction:
    return Fraction(Decimal(re.sub("[, ']", "", text)))


def first_names(groups: tuple[str, ...]) -> dict[str, str]:
    """{word: the first word of its group}."""
    names = {}
    for group in groups:
        for word in group.split():
            names[word] = group.split()[0]
    return names


MEASURES = first_names(
    (
        "feet foot ft",
        "inches inch in",
        "yards yard yd",
        "miles mile mi",
        "meters meter metres metre m",
        "centimeters centimeter centimetres centimetre cm",
        "millimeters millimeter millimetres millimetre mm",
        "kilometers kilometer kilometres kilometre km",
        "seconds second secs sec s",
        "minutes minute mins min",
        "hours hour hrs hr h",
        "days day",
        "weeks week",
        "months month",
        "years year yrs yr",
        "dollars dollar",
        "cents cent",
        "pounds pound lbs lb",
        "ounces ounce oz",
        "grams gram g",
        "kilograms kilogram kg",
        "liters liter litres litre l",
        "milliliters milliliter ml",
        "degrees degree",
        "am",
        "pm",
        "mph",
    )
)
MEASURE = rf"(?:{'|'.join(sorted(MEASURES, key=len, reverse=True))})(?![A-Za-z])"

# The longest stretch of text that could be one number: it is understood whole or not at all.
NUMERIC = re.compile(
    r"""(?<!\w)                                                     # km2 has no number
        (?:[-+]\s?)?(?:\$\s?(?:[-+]\s?)?)?\.?\d                      # signs, then the first digit
        (?:(?:[\d/^*_'+$ -]|[.,:](?=\d)|(?<=\d)[eE](?=[-+]?\d))*\d)?  # up to the last digit
    """,
    re.VERBOSE,
)
# What makes a number a part of something else: directly before it, and directly behind it.
PART_BEFORE = re.compile(
    "|".join(
        (
            r"[\w^_/\\)\]}√±]$",  # x5, )5
            r"[+*/^±<>≤≥-]\s?$",  # x + 5, > 5
            r"[\w^_√}+*/-][({\[]\s?$|\\\{\s?$",  # \sqrt{5}, f(5), -(5), \{5
        )
    )
)
PART_BEHIND = re.compile(
    "|".join(
        (
            r"[\^_!]|\\(?![)\]])|\(\s*[-\d]",  # 5!, 5\sqrt{2}, 5(3)
            r"\s?[-+*/^]\s?(?![aI]\b)[A-Za-z](?![A-Za-z])",  # 5 + x
            rf"(?!{MEASURE}|(?:st|nd|rd|th|[CFL])\b)[A-Za-z]{{1,2}}(?![A-Za-z])",  # 5x, 5k
            rf"\s(?![aAI]\b|{MEASURE})[A-Za-z](?![A-Za-z'])",  # 5 x
            r"\s(?:or|to|out\sof)\s+\$?\d|\s?%\s+of\s+\$?\d",  # 5 or 6, 20% of 50
            r"\sand\s+(?:an?\s|\d+/|\$?\d[\d.,]*\s*$)",  # 5 and a half, 5 and 1/2, 5 and 6
            r"(?:,|\sor|\sand)\s+[A-Za-z]\s*=",  # 5, y = 6
            r"(?:\s[A-Za-z]{2,}){1,2}\s?[-+*/]\s?\$?\d",  # 5 apples - 3
            rf"\s?{MEASURE}\.?,?\s(?:and\s)?\d[\d.]*\s?{MEASURE}",  # 5 feet 3 inches
        )
    )
)
LARGE_WORDS = re.compile(rf"(?:\s+(?:{'|'.join(LARGE)})\b)+")


@dataclass(frozen=True)
class Found:
    """A number in a text: its value and how it is written. None and "" where there is none."""

    value: Fraction | None = None
    written: str = ""


def number_in(text: str, last: bool = False) -> Found:
    """The first number of the text, or the last; nothing where it is a part of something else."""
    stretches = list(NUMERIC.finditer(text))
    if not stretches:
        return Found()
    stretch = stretches[-1 if last else 0]
    written = stretch[0].strip()
    before = text[: stretch.start()]
    behind = text[stretch.end() :]
    if re.match(r"[-+]\s", written) and re.search(r"[\w%)\]}]\s*$", before):
        return Found()  # x - 5
    if PART_BEFORE.search(before[-4:]) or PART_BEHIND.match(behind[:80]):
        return Found()
    if large := LARGE_WORDS.match(behind):
        written += large[0]
        if re.match(r"\s*(?:and\s+)?\d", behind[large.end() :]):
            return Found()  # 5 thousand and 20
    value = to_number(written)
    return Found() if value is None else Found(value, written)


def number(text: str) -> Fraction | None:
    r"""The number that a worked solution ends in, or None.

    It is looked for after `####`, in the last `\boxed{}`, behind the last "the answer is" that a
    number follows; without any of these it is the last number of the text.
    """
    text = normal(text)
    box = boxed(text)
    if "####" in text:
        line = after_hashes(text)
        answer = boxed(line) or without_exclamation(SENTENCE_END.split(line)[0])
    elif box is not None:
        answer = box
    elif ANSWER_IS.search(text):
        answer = without_exclamation(marked_answer(text, NUMBER_FOLLOWS) or "")
    else:
        return number_in(plain(without_exclamation(text)), last=True).value
    return number_in(equation_result(plain(answer))).value


def without_exclamation(text: str) -> str:
    """`5!` that ends a sentence is no factorial."""
    return re.sub(r"!+(?=\s|$)", "", text)


# One side of an equation in words and numbers: `20 - 5`, `4 apples * 3`, `20% of 50`, `x`, `Total`.
TERM = r"[-+($\s]*\.?\d[\d.,/^]*(?:\s*%)?(?:\s+[A-Za-z]{2,}){0,2}[)\s]*"
OPERATOR = r"(?:[-+*/x]|of|times|plus|minus|divided by)"
SIDE = re.compile(rf"[^\d=^_]*(?:{TERM}(?:{OPERATOR}{TERM})*)?")
LONGEST_SIDE = 200  # characters


def equation_result(text: str) -> str:
    """The last side of `20 - 5 = 15` and `x = 5 + 2 = 7`; any other text as it is.

    Only a text that starts as an equation is one: in `42, as 6 * 7 = 42` the first number counts.
    """
    sides = text.split("=")
    result = text
    for place, side in enumerate(sides):
        if len(side) > LONGEST_SIDE or not SIDE.fullmatch(side):
            return "=".join(sides[place:])
        if place == 0 or NUMERIC.search(side):
            result = side
    return result


def same_number(predicted: Fraction | None, expected: Fraction | None) -> bool:
    return predicted is not None and predicted == expected


# ---- formulas ------------------------------------------------------------------------------------

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


# ---- math-verify in a helper process -------------------------------------------------------------

TIME_LIMIT = 3.0  # seconds a comparison
START_LIMIT = 120.0  # seconds to import sympy, once
MEMORY_LIMIT = 4 * 2**30  # bytes of address space


class Helper:
    """Runs this file as a process that compares formulas: a line of JSON in, a line out.

    A process can be stopped in the middle of a computation; a thread, or a signal handler while
    a product of huge integers is under way, cannot. The helper is started at the first formula,
    again after one that overran, and ends with this process.
    """

    def __init__(self) -> None:
        self.process = None
        self.owner = None  # the process that started it: a fork must not share its pipes
        self.lock = threading.Lock()

    def ask(self, *question: object) -> object:
        """The helper's reply, or None where it does not come within the limit."""
        with self.lock:
            try:
                if not self.running():
                    self.start()
                return self.reply(json.dumps(question), TIME_LIMIT)
            except BaseException:  # after Ctrl-C, a reply that nobody has read must not stay
                self.stop()
                raise

    def running(self) -> bool:
        return (
            self.owner == os.getpid() and self.process is not None and self.process.poll() is None
        )

    def start(self) -> None:
        """Start the process and wait until it has imported math-verify. Raises UserError."""
        self.process = subprocess.Popen(
            [sys.executable, "-P", os.path.abspath(__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the command alone
        )
        self.owner = os.getpid()
        problem = self.reply("null", START_LIMIT)
        if problem == "":
            return
        from support.cli import UserError  # not at the top: the helper runs this file alone

        raise UserError(
            f"math-verify, which compares formulas, does not start ({problem or 'no reply'}); "
            "install the packages of requirements.txt"
        )

    def reply(self, line: str, limit: float) -> object:
        """The reply to a line of JSON; None, and the process is stopped, after `limit` seconds."""
        timer = threading.Timer(limit, self.process.kill)
        timer.daemon = True
        timer.start()
        reply = ""
        with contextlib.suppress(OSError):  # the process has ended
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            reply = self.process.stdout.readline()
        timer.cancel()
        if reply.endswith("\n"):
            return json.loads(reply)
        self.stop()
        return None

    def stop(self) -> None:
        process = self.process
        self.process = None
        if process is None or self.owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


HELPER = Helper()
atexit.register(HELPER.stop)


@functools.lru_cache(maxsize=2**14)  # an odd answer that many methods give overruns once
def ask_helper(expected: str, predicted: str, places: int) -> bool:
    """Whether math-verify finds two formulas equal; False where it takes too long."""
    return HELPER.ask(expected, predicted, places) is True


def serve() -> None:
    """The helper: reply to the first line when math-verify is there, then to each question."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout = sys.stderr  # what a library prints is no answer
    limit_memory()
    sys.stdin.readline()
    try:
        compare = load_comparison()
        problem = ""
    except Exception as error:
        problem = str(error) or type(error).__name__
    print(json.dumps(problem), file=replies, flush=True)
    for line in sys.stdin:
        end_after(TIME_LIMIT + 2)  # nobody stops it where the command was killed meanwhile
        print(json.dumps(compare(*json.loads(line))), file=replies, flush=True)
        end_after(0)


def limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))


def end_after(seconds: float) -> None:
    """Have the system end this process, even within one long product; 0 calls it off."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def load_comparison() -> Callable[[str, str, int], bool]:
    """The comparison of two formulas by math-verify, which takes a second to import."""
    import logging

    import sympy
    from latex2sympy2_extended import NormalizationConfig, latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify import verify

    logging.disable(logging.CRITICAL)  # it warns that its own time limits are off
    # Units are taken off before: math-verify takes the m of 5m for one.
    tidy = NormalizationConfig(malformed_operators=True, nits=True, boxed="none")
    conversion = ConversionConfig(lowercase_symbols=False)

    def read(text: str) -> sympy.Basic:
        formula = latex2sympy(
            text, is_real=True, normalization_config=tidy, conversion_config=conversion
        )
        return formula.xreplace({sympy.Symbol("i", real=True): sympy.I})

    def compare(expected: str, predicted: str, places: int) -> bool:
        try:
            sides = read(expected), read(predicted)
            precision = {"float_rounding": places, "numeric_precision": places + 15}
            return bool(verify(*sides, **precision, timeout_seconds=None))
        except Exception:  # whatever a text that is no formula makes of sympy
            return False

    return compare


if __name__ == "__main__":
    serve()
