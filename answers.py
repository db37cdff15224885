"""Answer parsing: free text -> the answer in it, and when two answers are the same. Pure functions that never raise."""
import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

AMOUNT = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
NUMBER = re.compile(rf"(?:(?<![\w).])-\s?)?\$?\s?(?:(?<=\$)-)?(?:{AMOUNT})(?:\s?/\s?\d+)?")  # a minus behind a digit subtracts
ANSWER_IS = re.compile(r"answer(?:\s+is|\s*:)", re.IGNORECASE)


def after_hashes(text):
    """The text after the first `####`, up to the line's end; without one, the first line."""
    before, mark, after = text.partition("####")
    return (after if mark else before).strip().partition("\n")[0].strip()


def to_number(text):
    """`1,234`, `-$3.50`, `3/4` -> a Fraction, or None."""
    text = re.sub(r"[\s$+]", "", text).rstrip(".")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    try:
        top, slash, bottom = text.partition("/")
        value = Fraction(Decimal(top))
        return value / Fraction(Decimal(bottom)) if slash else value
    except (InvalidOperation, ValueError, ZeroDivisionError, OverflowError):
        return None


def number(text):
    r"""The number that a worked solution ends in, as a Fraction, or None: after `####`, in `\boxed{}`, after "the
    answer is", else the last number of the text. What follows the answer is ignored."""
    boxed_text = boxed(text)
    marked = ANSWER_IS.split(text)
    if "####" in text:
        found = NUMBER.findall(after_hashes(text))[:1]
    elif boxed_text is not None:
        found = NUMBER.findall(boxed_text)[:1]
    elif len(marked) > 1:
        found = NUMBER.findall(marked[1])[:1]
    else:
        found = NUMBER.findall(text)[-1:]
    return to_number(found[0]) if found else None


def same_number(predicted, expected):
    return predicted is not None and predicted == expected


def boxed(text):
    r"""What the last complete `\boxed{...}` (or `\fbox{...}`) holds, nested braces and all, or None."""
    found = None
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        depth, start = 1, match.end()
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                found = text[start:place]
                break
    return found


def latex(text):
    r"""The final answer of a worked solution in LaTeX, normalised: what `\boxed{}` holds, else what follows "the answer
    is", else the last formula between dollars, else the last number as it stands; an empty string where there is none."""
    found = boxed(text)
    if found is None:
        after = ANSWER_IS.split(text)
        formulas = re.findall(r"\$([^$]+)\$", after[-1])
        if len(after) > 1:
            found = formulas[0] if formulas else re.split(r"\.(?:\s|$)|\n", after[1].strip())[0]
        else:
            found = formulas[-1] if formulas else (NUMBER.findall(text) or [""])[-1]
    return normal_latex(found)


def normal_latex(text):
    r"""LaTeX without what does not change its meaning: spaces, \left and \right, \dfrac for \frac, units in \text{},
    dollar and degree signs, thousands separators, a leading `x =`, a final full stop."""
    text = text.strip().strip("$").rstrip(".").replace("\\$", "").replace("\\%", "").replace("%", "")
    text = re.sub(r"\\(?:left|right|displaystyle|,|!|;|:|quad|qquad)(?![A-Za-z])", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\^\s*\{?\\circ\}?", "", text)
    text = re.sub(r"(?<=\S)\\(?:text|mbox|mathrm)\s*\{[^{}]*\}$", "", text)     # a unit behind the number
    text = re.sub(r"\\(?:text|mbox|mathrm|textbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\s+", "", text)
    text = re.sub(r"\\(frac|sqrt)(\w)", r"\\\1{\2}", text)                       # \frac12 -> \frac{1}{2}
    text = re.sub(r"(\\frac\{[^{}]*\})(\w)", r"\1{\2}", text)
    text = re.sub(r"^[A-Za-z](?:\([A-Za-z]\))?=(?=.)", "", text)
    if re.fullmatch(r"-?\d{1,3}(,(\\!)?\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    simple = re.fullmatch(r"(-?)(\d+)/(\d+)", text)
    if simple:
        text = f"{simple[1]}\\frac{{{simple[2]}}}{{{simple[3]}}}"
    return re.sub(r"(?<!\d)\.(?=\d)", "0.", text)


def same_latex(predicted, expected):
    """Equal after normalising, or equal as plain numbers (`0.5`, `\\frac{1}{2}`)."""
    if not predicted:
        return False
    values = [to_number(re.sub(r"\\frac\{(-?[\d.]+)\}\{(-?[\d.]+)\}", r"\1/\2", text)) for text in (predicted, expected)]
    return predicted == expected or (values[0] is not None and values[0] == values[1])


def normal_text(text):
    """Lower case, without punctuation and articles, single spaces (the normalisation of SQuAD's exact match)."""
    text = re.sub(r"[^\w\s]", " ", text.lower())
    return " ".join(word for word in text.split() if word not in ("a", "an", "the"))


def same_text(predicted, expected):
    return bool(normal_text(expected)) and normal_text(predicted) == normal_text(expected)
