"""pytest tests/sources/test_tasks.py: the benchmarks' rows become items, and pairs that fit."""

import json

import pytest
from samples import ROWS, folder

from sources import readers, tasks
from support.cli import UserError


@pytest.mark.parametrize(
    "train, test",
    [
        ("sst2", "finsen"),
        ("movies", "tweets"),
        ("agnews", "bbcnews"),
        ("sciq-mc", "qasc"),
        ("qasc", "arc"),
        ("gsm8k", "gsm8ks"),
    ],
)
def test_pairs_of_one_family_can_be_tested_on_each_other(train, test):
    tasks.check_pair(tasks.TASKS[train], tasks.TASKS[test])


@pytest.mark.parametrize(
    "train, test",
    [
        ("sst2", "agnews"),
        ("gsm8k", "sst2"),
        ("sst2", "gsm8k"),
        ("strategytf", "sst2"),
        ("gsm8k", "hmath-algebra"),
        ("sciq", "sciq-mc"),
        ("agnews", "qasc"),
    ],
)
def test_pairs_whose_answers_differ_are_refused(train, test):
    message = f"trained on {train} cannot be tested on {test}.*choose a task with the same"
    with pytest.raises(UserError, match=message):
        tasks.check_pair(tasks.TASKS[train], tasks.TASKS[test])


@pytest.mark.parametrize(
    "rating, label", [(1.0, None), (-0.5, None), (0.0, None), (2.5, 1), (-1.1, 0)]
)
def test_rated_snippets_are_labelled_by_the_sign_of_strong_ratings(rating, label):
    item = tasks.rated({"text": "x", "rating": rating})
    assert (item.label if item else None) == label


def test_options_keep_the_order_of_the_labels_and_the_answer_is_among_them():
    row = ROWS["arc"](6)
    item = tasks.TASKS["arc"].read_row(row)
    assert item.options == tuple(row["choices"]["text"])
    assert item.label == row["choices"]["label"].index(row["answerKey"])
    assert tasks.TASKS["arc"].read_row(ROWS["qasc"](0)) is None, "another count of options"
    item = tasks.TASKS["sciq-mc"].read_row(ROWS["sciq"](3))
    assert item.options[item.label] == ROWS["sciq"](3)["correct_answer"]
    assert item == tasks.TASKS["sciq-mc"].read_row(ROWS["sciq"](3)), "the order never changes"


@pytest.mark.parametrize(
    "name, row, message",
    [
        ("sst2", {"sentence": "x", "label": 2}, "the label 2 is unknown"),
        ("sst2", {"text": "x", "label": 1}, "no field 'sentence' of type str .*it has text, label"),
        ("sst2", {"sentence": "x", "label": "1"}, "no field 'label' of type int"),
        ("sst2", {"sentence": "x", "label": True}, "no field 'label' of type int"),
        ("strategytf", {"question": "x", "answer": "true"}, "no field 'answer' of type bool"),
        (
            "qasc",
            {"question": "x", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"},
            "answerKey 'B' is unknown",
        ),
        ("gsm8k", {"question": "x"}, "no field 'answer'"),
    ],
)
def test_wrong_rows_of_a_benchmark_are_named_by_file_and_line(name, row, message, tmp_path):
    folder(tmp_path)
    path = tmp_path / (tasks.TASKS[name].folder or name) / "train.jsonl"
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=rf"train.jsonl, line 25: .*{message}"):
        tasks.read_task(tasks.TASKS[name], tmp_path)


def test_unknown_names_and_missing_files_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="did you mean movies"):
        tasks.find_task("movie")
    with pytest.raises(UserError, match="sst2 has no train.jsonl or train.csv"):
        tasks.read_task(tasks.TASKS["sst2"], tmp_path)


def test_rows_in_one_piece_are_cut_in_two_that_never_meet():
    rows = [(i, {"text": f"text {i}"}) for i in range(90)]
    whole = readers.Rows({"train": rows, "test": []}, {}, "somewhere")
    parts = tasks.split(whole).parts
    assert (len(parts["train"]), len(parts["test"])) == (60, 30)
    assert sorted(parts["train"] + parts["test"], key=lambda row: row[0]) == rows
    assert parts == tasks.split(whole).parts
    many = readers.Rows({"train": [(i, {}) for i in range(9000)], "test": []}, {}, "")
    assert len(tasks.split(many).parts["test"]) == 1000
