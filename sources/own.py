"""A user's own folder: rows of {query, response}, and whether they are labels or free text."""

import json
import re
from dataclasses import dataclass
from fractions import Fraction

from sources.readers import BadRow, Item, Rows, field
from support.cli import UserError

MOST_LABELS = 10
LONGEST_LABEL = 30  # characters


def read_row(row: dict) -> Item:
    """A row {query, response}; a response that is a number or a truth value is that text."""
    response = row.get("response") if isinstance(row, dict) else None
    if isinstance(response, (bool, int, float)):
        row = {**row, "response": json.dumps(response)}
    query = field(row, "query").strip()
    response = one_block(field(row, "response"))
    for name, text in (("query", query), ("response", response)):
        if not text:
            raise BadRow(f"the field {name!r} is empty")
    return Item(query, answer=response)


def one_block(text: str) -> str:
    """A response without blank lines, at which evaluation would stop."""
    return re.sub(r"\s*\n\s*\n\s*", "\n", text.strip())


def is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[-+]?\d+(\.\d+)?", text))


@dataclass(frozen=True)
class Understood:
    """What a user's rows are: a label task, or free text (no labels)."""

    labels: tuple[str, ...]
    items: dict[str, list[Item]]


def understand(rows: Rows, items: dict[str, list[Item]]) -> Understood:
    """Whether the rows hold labels or free text.

    If every response is one of at most 10 short texts, each seen twice or more on average, they
    are labels. Truth values and numbers that are written in two ways are one label. Raises
    UserError where a part is empty, a query has two responses, or a test label does not occur in
    training.
    """
    for part, found in items.items():
        if not found:
            raise UserError(
                f'{rows.places[part]} holds no rows; write lines of {{"query": ..., '
                '"response": ...}'
            )
    check_responses(rows, items)
    answers = [item.answer for found in items.values() for item in found]
    names = label_names(answers)
    labels = sorted(set(names.values()))
    short = max(len(label) for label in labels) <= LONGEST_LABEL
    if not 2 <= len(labels) <= MOST_LABELS or 2 * len(labels) > len(answers) or not short:
        return Understood((), items)
    check_test_labels(rows, items, names)
    labelled = {}
    for part, found in items.items():
        labelled[part] = [Item(item.text, labels.index(names[item.answer])) for item in found]
    return Understood(tuple(labels), labelled)


def check_responses(rows: Rows, items: dict[str, list[Item]]) -> None:
    """Raise UserError where a query has one response here and another there."""
    said = {}
    for part, found in items.items():
        for (line, _), item in zip(rows.parts[part], found):
            place = f"{rows.places[part]}, line {line}"
            first_place, answer = said.setdefault(item.text, (place, item.answer))
            if value_of(answer) != value_of(item.answer):
                raise UserError(
                    f"{place}: the query has the response {item.answer!r} here and {answer!r} in "
                    f"{first_place}; keep one of the two"
                )


def value_of(text: str) -> object:
    """What two ways of writing a label have in common: a truth value, a number, or the text."""
    if text.lower() in ("true", "false", "yes", "no"):
        return text.lower()
    if is_number(text):
        return Fraction(text)
    return text


def label_names(answers: list[str]) -> dict[str, str]:
    """For each response the label that it is: of two ways to write a value the first one."""
    first = {}
    names = {}
    for answer in answers:
        names[answer] = first.setdefault(value_of(answer), answer)
    return names


def check_test_labels(rows: Rows, items: dict[str, list[Item]], names: dict[str, str]) -> None:
    """Raise UserError for a test label that no training example has."""
    trained = {names[item.answer] for item in items["train"]}
    for (line, _), item in zip(rows.parts["test"], items["test"]):
        if names[item.answer] not in trained:
            raise UserError(
                f"{rows.places['test']}, line {line}: the label {item.answer!r} is in no training "
                f"example (those have {', '.join(sorted(trained))}); write labels the same way in "
                "both files, or add examples of it"
            )
