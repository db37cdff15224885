"""Answer parsing: free text -> the answer in it, and when two answers are the same.

    after_hashes, number     find the answer in a response; `formulas.final_formula` too
    same_text, same_words, same_number     compare two answers; `formulas.same_formula` too

No text makes these functions raise or hang. Texts are compared in one Unicode form (`normal`).
Numbers are read here and compared exactly. What is not understood is no number; it is never
another number.
"""

import re
import unicodedata
from collections.abc import Iterable
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
MOST_BITS = 10_000  # of a value: Python writes no number of more than 4,300 digits


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
    bits = max(value.numerator.bit_length(), value.denominator.bit_length())
    return value if bits < MOST_BITS else None


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
# A `/` between two digits belongs to their term alone: read in two ways, each of many would double
# the time.
DIVIDED = r"/(?![\d.,/^])|(?<![\d.,/^])/(?=[\d.,/^])"
OPERATOR = rf"(?:[-+*x]|{DIVIDED}|of|times|plus|minus|divided by)"
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
