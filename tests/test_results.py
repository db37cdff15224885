"""pytest tests/test_results.py: the results file under several writers and faults, and the figures of the tables."""
import errno
import multiprocessing
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import row

import results
from fetch import UserError


def write_some(path, numbers):
    for number in numbers:
        results.append(path, [row(run=f"r{number}"), row(run=f"r{number}", eval_dataset="e")])


def test_several_processes_lose_nothing_and_write_nothing_twice(tmp_path):
    path = tmp_path / "results.jsonl"
    processes = [multiprocessing.get_context("fork").Process(target=write_some, args=(path, range(start, start + 20)))
                 for start in (0, 10, 20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    keys = [results.key(found) for found in results.read(path)]
    assert len(keys) == len(set(keys)) == 2 * 40


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=4), max_size=8), st.integers(0, 200))
def test_any_order_of_writes_and_a_half_line_keep_every_row_once(tmp_path_factory, writes, cut):
    path = tmp_path_factory.mktemp("r") / "results.jsonl"
    for numbers in writes:
        results.append(path, [row(run=f"r{number}") for number in numbers])
        with open(path, "ab") as file:
            file.write(b'{"run": "half a line' [:cut % 20])
    found = [entry["run"] for entry in results.read(path)]
    assert sorted(found) == sorted({f"r{number}" for numbers in writes for number in numbers})


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    results.append(path, [row()])
    before = path.read_bytes()

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot write .*No space left .*what is finished is kept"):
        results.append(path, [row(run="other")])
    assert path.read_bytes() == before


def test_the_learning_rate_is_picked_by_dev_loss_and_never_by_test():
    rows = [row(lr=1e-4, dev_loss=2.0, accuracy=0.9, set=0), row(lr=1e-4, dev_loss=2.0, accuracy=0.9, set=1),
            row(lr=1e-3, dev_loss=1.0, accuracy=0.1, set=0), row(lr=1e-3, dev_loss=2.5, accuracy=0.2, set=1),
            row(lr=1e-2, dev_loss=0.1, accuracy=0.3, set=0)]  # the last lacks a set
    assert [found["accuracy"] for found in results.pick_rates(rows)] == [0.1, 0.2]


def test_tables_have_means_deviations_bold_bests_and_marks():
    rows = [row(accuracy=0.8, ece=0.2, set=0), row(accuracy=0.6, ece=0.1, set=1), row(method="ia2", accuracy=0.9, ece=0.3, set=0),
            row(method="ia2", accuracy=0.9, ece=0.3, set=1), row(method="ia2", eval_dataset="o", accuracy=0.5)]
    head, first, second = results.table(rows, ["base", "sft", "ia2"])
    assert head == ["method", "lr", "d acc %", "d ECE", "d asim", "o* acc %", "o* ECE", "o* asim"]
    assert first[:5] == ["sft", "0.001", "70.0 ± 14.1", "**0.150 ± 0.071**", "0.300 ± 0.000"] and first[5:] == ["-"] * 3
    assert second[2] == "**90.0 ± 0.0**" and second[5] == "50.0"


def test_differences_are_paired_by_set_and_task():
    rows = [row(method=method, set=number, accuracy=value) for method, values in
            (("sft", (0.5, 0.6, 0.7)), ("ia2-sft", (0.6, 0.8, 0.7))) for number, value in enumerate(values)]
    assert results.paired(rows[:-1], "accuracy", "ia2-sft", "sft") == pytest.approx([0.1, 0.2])
    text = results.report(rows, ["sft", "ia2-sft"])
    assert "- accuracy, ia2-sft minus sft: +10.0 points, 95% interval [+0.0, +20.0], 3 pairs" in text


def test_a_report_of_nothing_says_so():
    assert results.report([], []) == "There are no results yet.\n"
