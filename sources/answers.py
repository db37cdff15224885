"""Answer parsing: free text -> the answer in it, and when two answers are the same. Nothing here ever raises.

Formulas are compared by math-verify; numbers of grade-school problems and plain texts here.
"""
import logging
import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

AMOUNT = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
# A minus behind a digit or a bracket subtracts.
NUMBER = re.compile(rf"(?:(?<![\w).])-\s?)?\$?\s?(?:(?<=\$)-)?{AMOUNT}(?:\s?/\s?\d+)?")
ANSWER_IS = re.compile(r"answer(?:\s+is|\W*:)\W*?", re.IGNORECASE)
LONGEST = 500  # characters of a formula that is compared as one
EXPLOSIVE = re.compile(r"(\^|\*\*)[^,;=]*(\^|\*\*)|(\^|\*\*)\W*\d{4}|\d{3}\s*!|!\s*!|\d[eE][-+]?\d{4}")

def after_hashes(text):
    """The text after the first `####`, up to the line's end; without one, the first line."""
    before, mark, after = text.partition("####")
    return (after if mark else before).strip().partition("\n")[0].strip()

def plain_signs(text):
    """The Unicode minus as `-`, and LaTeX's thousands separators, dollars and fractions as plain text."""
    text = re.sub(r"\\[!,;: ]|\\(?=[$%])", "", text.replace("−", "-").replace("{,}", ","))
    return re.sub(r"\\[dtc]?frac\s*\{\s*(-?[\d.]+)\s*\}\s*\{\s*([\d.]+)\s*\}", r"\1/\2", text)

def to_number(text):
    """`1,234`, `-$3.50`, `3/4` -> a Fraction, or None."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", re.sub(r"[\s$+]", "", text))
    try:
        top, slash, bottom = text.partition("/")
        if re.search(r"e-?\d{4}", text, re.IGNORECASE):  # would take for ever as a Fraction
            return None
        value = Fraction(Decimal(top))
        return value / Fraction(Decimal(bottom)) if slash else value
    except (InvalidOperation, ValueError, ZeroDivisionError, OverflowError):
        return None

def number(text):
    r"""The number that a worked solution ends in, as a Fraction, or None.

    It is looked for after `####`, in the last `\boxed{}`, after "the answer is", else it is the last number
    of the text. What follows the answer is ignored; of `20 - 5 = 15` the result counts.
    """
    text = plain_signs(text)
    boxed_text, marked = boxed(text), ANSWER_IS.split(text)
    if "####" in text:
        answer = after_hashes(text)
    elif boxed_text is not None:
        answer = boxed_text
    elif len(marked) > 1:
        answer = re.split(r"\.(?:\s|$)|\n", marked[-1].strip())[0]
    else:
        found = NUMBER.findall(text)
        return to_number(found[-1]) if found else None
    found = NUMBER.findall(answer.rpartition("=")[2]) or NUMBER.findall(answer)
    return to_number(found[0]) if found else None

def same_number(predicted, expected):
    return predicted is not None and predicted == expected

def boxed(text):
    r"""What the last complete `\boxed{...}` (or `\fbox{...}`) holds, nested braces and all, or None."""
    found = None
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        depth, start = 1, match.end()
        for i in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                found = text[start:i]
                break
    return found

def final_formula(text):
    r"""The final answer of a worked solution in LaTeX, as text: what the last box holds, or where there is
    none what follows "the answer is", else the last formula between dollars, else the last number."""
    text = text.replace("−", "-")
    found = boxed(text)
    if found is None and (bare := re.findall(r"\\boxed\s+(\S)", text)):
        found = bare[-1]
    if found is None:
        marked = ANSWER_IS.split(text)
        tail = re.split(r"\.(?:\s|\W*$)|\n", marked[-1].strip())[0] if len(marked) > 1 else text
        formulas = [a or b or c for a, b, c in re.findall(r"\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", tail)]
        if formulas:
            found = formulas[0] if len(marked) > 1 else formulas[-1]
        else:
            found = tail if len(marked) > 1 else (NUMBER.findall(text) or [""])[-1]
    return found.lstrip(" *$\n").rstrip(" .*$\n")

def same_formula(predicted, expected):
    """Whether two formulas mean the same by math-verify; what is too long or huge is compared as text."""
    if not predicted.strip():
        return False
    if re.sub(r"\s", "", predicted) == re.sub(r"\s", "", expected):
        return True
    if any(len(side) > LONGEST or EXPLOSIVE.search(side) for side in (predicted, expected)):
        return False
    import math_verify  # slow to import, and only this task needs it

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that its timeouts are off
    try:
        sides = [math_verify.parse(f"\\boxed{{{side}}}", parsing_timeout=None)
                 for side in (expected, predicted)]
        return bool(math_verify.verify(*sides, timeout_seconds=None))
    except Exception:  # whatever a text that is no formula makes of sympy
        return False

def same_text(predicted, expected):
    """Equal but for case, surrounding white space and a final full stop: signs and symbols count."""
    first, second = ((text.strip().removesuffix(".").strip() or text.strip()).casefold()
                     for text in (predicted, expected))
    return bool(second) and first == second

def same_words(predicted, expected):
    """Equal but for case, punctuation and articles (SQuAD's exact match), for answers that are words."""
    first, second = (" ".join(word for word in re.sub(r"[^\w\s]", " ", text.lower()).split()
                              if word not in ("a", "an", "the")) for text in (predicted, expected))
    return first == second if first and second else same_text(predicted, expected)
