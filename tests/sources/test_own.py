"""pytest tests/sources/test_own.py: a user's own rows: labels or free text, and what is refused."""

import pytest

from sources import own, readers
from support.cli import UserError


def understand(train, test):
    """What own.understand makes of two lists of responses."""
    parts = {}
    for part, responses in (("train", train), ("test", test)):
        rows = [{"query": f"{part} {i}", "response": text} for i, text in enumerate(responses)]
        parts[part] = list(enumerate(rows, start=1))
    places = {part: f"{part}.jsonl" for part in parts}
    items = {part: [own.read_row(row) for _, row in rows] for part, rows in parts.items()}
    return own.understand(readers.Rows(parts, places, "folder:x"), items)


@pytest.mark.parametrize(
    "train, test, labels",
    [
        (["a", "b", "a"], ["b"], ("a", "b")),
        (["True", "False", "true"], ["false", "TRUE"], ("False", "True")),
        (["Yes", "no", "yes"], ["NO"], ("Yes", "no")),
        (["1", "0", "1.0"], ["0.0"], ("0", "1")),
        ([1, 2, 1.0], [2.0, 1], ("1", "2")),
        ([True, False, "true"], ["False"], ("false", "true")),
    ],
)
def test_values_that_are_written_in_two_ways_are_one_label(train, test, labels):
    found = understand(train, test)
    assert found.labels == labels
    assert all(0 <= item.label < len(labels) for part in found.items.values() for item in part)


@pytest.mark.parametrize(
    "train, test, missing",
    [
        (["a", "b", "a", "b"], ["c", "a"], "'c'"),
        (["yes", "no", "no", "yes"], ["maybe", "no"], "'maybe'"),
        (["1", "2", "2", "1"], ["3", "1"], "'3'"),
    ],
)
def test_a_test_label_that_training_lacks_is_named(train, test, missing):
    message = f"test.jsonl, line 1: the label {missing} is in no training example"
    with pytest.raises(UserError, match=message):
        understand(train, test)


@pytest.mark.parametrize(
    "responses",
    [
        [f"text {i}" for i in range(6)],  # each seen once
        ["a"] * 6,  # one label is no choice
        [f"{i % 11}" for i in range(44)],  # too many
        ["x" * 31, "y"] * 3,  # too long
    ],
)
def test_other_responses_are_free_text(responses):
    assert understand(responses, responses[:1]).labels == ()


def test_labels_that_differ_in_case_alone_are_two_unless_they_are_truth_values():
    assert understand(["US", "us", "US", "us"], ["US"]).labels == ("US", "us")


@pytest.mark.parametrize("response, text", [(3, "3"), (0.5, "0.5"), (True, "true"), (" a ", "a")])
def test_a_response_that_is_a_number_or_a_truth_value_is_that_text(response, text):
    assert own.read_row({"query": "q", "response": response}).answer == text


@pytest.mark.parametrize(
    "row, message",
    [
        ({"query": " ", "response": "b"}, "'query' is empty"),
        ({"query": "a", "response": "\n"}, "'response' is empty"),
        ({"query": "a"}, "no field 'response'"),
        ({"query": "a", "response": ["b"]}, "no field 'response' of type str"),
        ([1, 2], "no JSON object"),
    ],
)
def test_rows_that_say_nothing_are_refused(row, message):
    with pytest.raises(readers.BadRow, match=message):
        own.read_row(row)


def test_blank_lines_in_a_response_are_closed_up():
    assert own.one_block("One.\n\nTwo.\r\n \r\nThree.\n") == "One.\nTwo.\nThree."


def test_long_numbers_that_differ_are_two_labels():
    """As numbers of double precision they would be one."""
    long = ["10000000000000000", "10000000000000001", "10000000000000000.0"]
    names = own.label_names(long)
    assert names == {long[0]: long[0], long[1]: long[1], long[2]: long[0]}
