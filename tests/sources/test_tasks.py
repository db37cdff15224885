"""pytest tests/sources/test_tasks.py: rows of the benchmarks, the hub's layouts, and what there is without a hub."""
import json
from argparse import Namespace

import pandas
import pytest
from conftest import ARGS
from samples import ROWS, folder

import data
from sources import tasks
from sources.offline import UserError


@pytest.mark.parametrize("train, test", [("sst2", "finsen"), ("movies", "tweets"), ("agnews", "bbcnews"), ("sciq-mc", "qasc"),
                                         ("qasc", "arc"), ("gsm8k", "gsm8ks")])
def test_pairs_of_one_family_can_be_tested_on_each_other(train, test):
    tasks.check_pair(tasks.TASKS[train], tasks.TASKS[test])


@pytest.mark.parametrize("train, test", [("sst2", "agnews"), ("gsm8k", "sst2"), ("sst2", "gsm8k"), ("strategytf", "sst2"),
                                         ("gsm8k", "hmath-algebra"), ("sciq", "sciq-mc"), ("agnews", "qasc")])
def test_pairs_whose_answers_differ_are_refused(train, test):
    with pytest.raises(UserError, match=f"trained on {train} cannot be tested on {test}.*choose a task with the same"):
        tasks.check_pair(tasks.TASKS[train], tasks.TASKS[test])


def test_rated_snippets_are_labelled_by_the_sign_of_strong_ratings():
    ratings = [(1.0, None), (-0.5, None), (2.5, 1), (-1.1, 0)]
    assert [getattr(tasks.rated({"text": "x", "rating": rating}), "label", None) for rating, _ in ratings] == [y for _, y in ratings]


@pytest.mark.parametrize("name, row, message", [
    ("sst2", {"sentence": "x", "label": 2}, "the label 2 is unknown"),
    ("sst2", {"text": "x", "label": 1}, "no field 'sentence' of type str .*it has text, label"),
    ("sst2", {"sentence": "x", "label": "1"}, "no field 'label' of type int"),
    ("sst2", {"sentence": "x", "label": True}, "no field 'label' of type int"),
    ("strategytf", {"question": "x", "answer": "true"}, "no field 'answer' of type bool"),
    ("qasc", {"question": "x", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}, "answerKey 'B' is unknown"),
    ("gsm8k", {"question": "x"}, "no field 'answer'"),
])
def test_wrong_rows_of_a_benchmark_are_named_by_file_and_line(name, row, message, tmp_path):
    folder(tmp_path)
    with open(tmp_path / (tasks.TASKS[name].folder or name) / "train.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=rf"train.jsonl, line 25: .*{message}"):
        tasks.read_task(tasks.TASKS[name], tmp_path)


def test_unknown_names_and_missing_files_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="did you mean movies"):
        tasks.find_task("movie")
    with pytest.raises(UserError, match="sst2 has no train.jsonl or train.csv"):
        tasks.read_task(tasks.TASKS["sst2"], tmp_path)
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.jsonl").write_bytes(b'{"sentence": "x", "label": 1}\n{"sentence": "caf\xe9", "label": 0}\n')
    (tmp_path / "sst2" / "test.jsonl").write_text("")
    with pytest.raises(UserError, match="train.jsonl, line 2: this is not UTF-8"):
        tasks.read_task(tasks.TASKS["sst2"], tmp_path)


@pytest.mark.parametrize("name", [name for name, task in tasks.TASKS.items() if task.hub])
def test_datasets_reads_each_repository_layout(name, tmp_path):
    """The hub's repositories as local folders: parquet for those that are stored or converted so, read by `datasets`."""
    task = tasks.TASKS[name]
    rows = [ROWS[task.folder or name](k) for k in range(6)]
    for split in {task.hub.train, task.hub.test}:
        place = tmp_path / (task.hub.files.replace("*", "0000").format(split=split) if task.hub.files
                            else f"{task.hub.config or 'data'}/{split}-00000-of-00001.parquet")
        place.parent.mkdir(parents=True, exist_ok=True)
        pandas.DataFrame(rows).to_parquet(place)
    if task.hub.config:
        (tmp_path / "README.md").write_text(
            f"---\nconfigs:\n- config_name: {task.hub.config}\n  data_files:\n" + "".join(
                f"  - split: {split}\n    path: {task.hub.config}/{split}-*\n" for split in {task.hub.train, task.hub.test})
            + "---\n")
    found = tasks.load_hub_rows(str(tmp_path), task.hub)
    assert [i for i, _ in found["train"]] == list(range(6))
    assert [task.read_row(row) for _, row in found["train"]] == [task.read_row(row) for row in rows]


@pytest.fixture
def no_hub(monkeypatch):
    import datasets
    import huggingface_hub

    def refuse(*arguments, **options):
        raise ConnectionError("no route to the hub")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", datasets.config.HF_HUB_OFFLINE)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", huggingface_hub.constants.HF_HUB_OFFLINE)


def test_without_a_hub_sst2_falls_back_loudly_and_others_are_one_sentence(no_hub, tokenizer, capsys):
    found = data.load("sst2", tokenizer, Namespace(**{**vars(ARGS), "data_dir": None}))
    assert found.source == "stand-in movies, pypi:vaderSentiment==3.3.2" and found.task.name == "sst2"
    assert "stands in for sst2" in capsys.readouterr().err
    with pytest.raises(UserError, match="the hub cannot be reached for agnews.*--data-dir"):
        tasks.read_task(tasks.TASKS["agnews"])
