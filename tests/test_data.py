"""pytest tests/test_data.py: tasks, prompts, few-shot sets, own data, and what wrong rows say."""
import json

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import ROWS, folder

import data
import tasks
from fetch import UserError

WORDED = ("sst2", "finsen", "poems", "agnews", "bbcnews")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("samples"))


# ---- tasks and prompts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, task in tasks.TASKS.items() if not task.snippets])
def test_every_task_reads_its_rows(name, samples):
    found = data.load(name, samples)
    assert found.pool and found.test and found.source.startswith("folder:")
    for example in found.pool + found.test:
        assert example.query and example.response
        if found.task.labels:
            assert example.response == found.label_texts[example.label]
        else:
            assert example.label is None and found.task.parse(example.response) not in (None, "")


@pytest.mark.parametrize("name, query, response", [
    ("sst2", "Text:a dull and noisy film , part 0\nLabel:", "0"),
    ("finsen", "Text:Profit fell by 0 percent .\nLabel:", "0"),
    ("agnews", "Text:The council met to sign a treaty between two countries, report 0\nLabel:", "0"),
    ("strategytf", "Question:Is 0 an even number?\nAnswer:", " true"),
    ("gsm8k", "Question:Ann has 0 pens and buys 2. How many has she?\nAnswer:",
     " She has 0 + 2 = <<0+2=2>>2 pens.\n#### 2"),
    ("sciq", "Question:What do you get from 0 plus 1?\nAnswer:", " One more than 0 is 1.\n#### 1"),
    ("hmath-algebra", "Question:Solve $x = 0 + 1$.\nAnswer:", " We add: $x = \\boxed{1}$."),
])
def test_prompts_are_worded_as_in_the_paper(name, query, response, samples):
    first = data.load(name, samples).pool[0]
    assert (first.query, first.response) == (query, response)


def test_choices_are_numbered_and_the_answer_is_the_right_one(samples):
    for name in ("qasc", "arc", "sciq-mc"):
        for example in data.load(name, samples, style="digits").pool:
            question, *lines = example.query.removesuffix("\nAnswer:").split("\n")
            assert lines[0] == "Choices:" and [line[:3] for line in lines[1:]] == [f"[{k}]" for k in range(len(lines) - 1)]
            chosen = lines[1 + int(example.response)][3:]
            number = int(question.split()[-1 if name != "sciq-mc" else 5].strip("?"))
            assert chosen == (f"{number + 1}" if name == "sciq-mc" else f"thing {number}")


def test_the_options_of_sciq_are_shuffled(samples):
    assert len({example.label for example in data.load("sciq-mc", samples).pool}) == 4


def test_small_models_get_a_plain_wording(samples):
    assert data.load("sst2", samples, plain=True, style="words").pool[1] == data.Example(
        "Review: a warm and clever film , part 0\nSentiment:", " positive", 1)
    assert data.load("gsm8k", samples, plain=True).pool[0].query.startswith("Question:")


def test_bbc_news_is_cut_at_a_word_and_has_the_labels_of_ag_news(samples):
    found = data.load("bbcnews", samples, style="words")
    text = found.pool[0].query.removeprefix("Text:").removesuffix("\nLabel:")
    assert 240 < len(text) <= 256 and not text.endswith(" ") and "  " not in text and text.split()[-1] in "more words follow"
    assert {example.response for example in found.pool} == {" world", " sports", " business", " sci/tech"}


def test_neutral_rows_are_left_out(samples):
    assert {example.label for example in data.load("finsen", samples).pool} == {0, 1}
    assert len(data.load("finsen", samples).pool) == 16
    assert len(data.load("poems", samples).pool) == 19


def test_rated_snippets_are_labelled_by_the_sign_of_strong_ratings(movies):
    assert tasks.rated({"text": "fine", "rating": 1.0}) is None and tasks.rated({"text": "bad", "rating": -0.5}) is None
    assert tasks.rated({"text": "great", "rating": 2.5}).label == 1 and tasks.rated({"text": "bad", "rating": -1.1}).label == 0
    assert len(movies.pool) > 5000 and len(movies.test) > 500


def test_no_test_text_is_in_the_pool(movies):
    assert not {data.normal(e.query) for e in movies.pool} & {data.normal(e.query) for e in movies.test}
    kept = data.drop_repeats([data.Example("A  b", "x"), data.Example("a B ", "y"), data.Example("c", "x")], ["c"])
    assert [example.query for example in kept] == ["A  b"]


# ---- labels -----------------------------------------------------------------------------------------------------------


def test_labels_are_digits_words_or_arbitrary_names():
    task = tasks.TASKS["qasc"]
    assert data.label_texts(task, "digits") == list("01234567")
    assert data.label_texts(tasks.TASKS["sst2"], "words") == [" negative", " positive"]
    names = data.label_texts(task, "remap", seed=1)
    assert len(set(names)) == 8 and names != data.label_texts(task, "remap", seed=2)
    assert data.label_texts(tasks.TASKS["sciq-mc"], "remap", seed=1) == names[:4], "tasks of a family share their names"
    with pytest.raises(UserError, match="too few of the words"):
        data.label_texts(task, "remap", is_one_token=lambda text: False)


@pytest.mark.parametrize("train, test", [("sst2", "finsen"), ("movies", "tweets"), ("agnews", "bbcnews"),
                                         ("sciq-mc", "qasc"), ("qasc", "arc"), ("gsm8k", "gsm8ks")])
def test_pairs_of_one_family_can_be_tested_on_each_other(train, test):
    data.check_pair(tasks.TASKS[train], tasks.TASKS[test])


@pytest.mark.parametrize("train, test", [("sst2", "agnews"), ("gsm8k", "sst2"), ("sst2", "gsm8k"), ("strategytf", "sst2"),
                                         ("gsm8k", "hmath-algebra"), ("sciq", "sciq-mc"), ("agnews", "qasc")])
def test_pairs_whose_answers_differ_are_refused(train, test):
    with pytest.raises(UserError, match=f"trained on {train} cannot be tested on {test}.*choose a task with the same"):
        data.check_pair(tasks.TASKS[train], tasks.TASKS[test])


# ---- few-shot sets ------------------------------------------------------------------------------------------------------


POOL = [data.Example(f"q{k}", f"{k % 3}", k % 3) for k in range(90)]


@given(st.integers(0, 10**6), st.integers(0, 50), st.booleans(), st.integers(2, 40), st.integers(2, 40))
@settings(max_examples=60)
def test_few_shot_sets_are_seeded_nested_disjoint_and_balanced(seed, number, balanced, small, large):
    small, large = sorted((small, large))
    few, many = (data.few_shot_set(POOL, n, number, seed, balanced) for n in (small, large))
    assert few.train == many.train[:small] and few.dev == many.dev[:small // 2]
    assert (len(many.train), len(many.dev)) == (large, large // 2)
    assert len({example.query for example in many.train + many.dev}) == large + large // 2
    assert many == data.few_shot_set(list(POOL), large, number, seed, balanced)
    if balanced:
        for part in (many.train, many.dev):
            counts = [sum(example.label == label for example in part) for label in range(3)]
            assert max(counts) - min(counts) <= 1
        labels = [example.label for example in many.train]
        assert all(labels[k] == labels[k - 3] for k in range(3, large)), "labels alternate"


def test_random_sets_are_uniform_draws_and_differ():
    counts = [0] * 3
    for number in range(400):
        for example in data.few_shot_set(POOL, 4, number).train:
            counts[example.label] += 1
    assert all(abs(count - 1600 / 3) < 80 for count in counts)
    assert data.few_shot_set(POOL, 8, 0).train != data.few_shot_set(POOL, 8, 1).train
    assert data.few_shot_set(POOL, 8, 0, seed=0).train != data.few_shot_set(POOL, 8, 0, seed=1).train


@pytest.mark.parametrize("n, balanced", [(61, False), (1, False), (90, False), (62, True)])
def test_n_that_does_not_fit_is_refused(n, balanced):
    with pytest.raises(UserError, match="at least 2|more than the pool of 90"):
        data.few_shot_set(POOL, n, balanced=balanced)


def test_demos_are_all_the_other_examples_in_an_order_of_their_own():
    few = data.few_shot_set(POOL, 8, 3)
    orders = []
    for place, example in enumerate(few.train):
        demos = data.leave_one_out(few, place)
        assert example not in demos and len(demos) == 7 and set(d.query for d in demos) < set(d.query for d in few.train)
        assert demos == data.leave_one_out(few, place)
        orders.append([few.train.index(demo) for demo in demos])
    assert any(order != sorted(order) for order in orders)


def test_demos_of_a_balanced_set_can_stay_balanced():
    few = data.few_shot_set(POOL, 9, 3, balanced=True)
    for place, example in enumerate(few.train):
        one, each = data.leave_one_out(few, place), data.leave_one_out(few, place, each=True)
        assert [demo.label for demo in one].count(example.label) == 2 and len(one) == 8
        assert sorted(demo.label for demo in each) == [0, 0, 1, 1, 2, 2] and example not in each
        assert each == [demo for demo in one if demo in each]  # the same order


def test_balanced_demos_end_in_any_label_equally_often():
    """The last of 2 demos has the label of the example in half of 1000 draws, with a deviation of 0.016."""
    pool = [example for example in POOL if example.label < 2]
    ends = [data.leave_one_out(few, place, each=True)[-1].label == few.train[place].label
            for few in (data.few_shot_set(pool, 4, number, balanced=True) for number in range(250)) for place in range(4)]
    assert sum(ends) / 1000 == pytest.approx(0.5, abs=0.08)


# ---- one's own data -----------------------------------------------------------------------------------------------------


def own(path, train, test=None, name="train.jsonl", encoding="utf-8"):
    lines = lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" if isinstance(row, dict) else row for row in rows)
    (path / name).write_text(lines(train), encoding=encoding)
    (path / "test.jsonl").write_text(lines(train if test is None else test), encoding="utf-8")
    return str(path)


COLOURS = [{"query": f"The colour of {thing} is", "response": colour} for thing, colour in
           [("grass", "green"), ("snow", "white"), ("leaves", "green"), ("milk", "white"), ("moss", "green"), ("salt", "white")]]


def test_own_rows_with_few_short_responses_are_a_label_task(tmp_path):
    found = data.load(own(tmp_path, COLOURS[:4], COLOURS[4:]), plain=True)
    assert found.task.labels == ("green", "white") and found.task.max_tokens == 1
    assert found.pool[0] == data.Example("The colour of grass is", " green", 0)


def test_own_rows_with_many_responses_are_free_text(tmp_path):
    rows = [{"query": f"{k} squared is", "response": f"the number {k * k}"} for k in range(8)]
    found = data.load(own(tmp_path, rows[:6], rows[6:]))
    assert found.task.labels == () and found.pool[0].response == " the number 0"
    assert found.task.same(found.task.parse(" The number 4. "), found.task.parse("the number 4"))


def test_own_rows_can_be_csv(tmp_path):
    (tmp_path / "train.csv").write_text('query,response\n"a, b",yes\nc,no\n"two\nlines",yes\nd,no\n', encoding="utf-8-sig")
    (tmp_path / "test.csv").write_text("query,response\ne,yes\n", encoding="utf-8")
    found = data.load(str(tmp_path))
    assert [example.query for example in found.pool] == ["a, b", "c", "two\nlines", "d"]
    assert found.task.labels == ("no", "yes")


@pytest.mark.parametrize("rows, message", [
    ([{"query": "a", "respnse": "b"}], r"train.jsonl, line 1: the row has no field 'response' .*it has query, respnse"),
    ([COLOURS[0], {"query": "a", "response": 3}], r"line 2: the row has no field 'response' of type str"),
    ([COLOURS[0], {"query": " ", "response": "b"}], r"line 2: the field 'query' is empty"),
    ([COLOURS[0], "{broken\n"], r"train.jsonl, line 2: this is not a JSON object"),
    ([COLOURS[0], "[1, 2]\n"], r"line 2: the row has no field 'query' .*no JSON object"),
    ([], r"train.jsonl holds no rows"),
    (["\n\n"], r"train.jsonl holds no rows"),
])
def test_wrong_own_rows_are_named_by_file_and_line(rows, message, tmp_path):
    with pytest.raises(UserError, match=message):
        data.load(own(tmp_path, rows, COLOURS))


def test_broken_csv_is_named_with_its_line(tmp_path):
    (tmp_path / "test.csv").write_text("query,response\na,b\n")
    (tmp_path / "train.csv").write_text('query,response\na,b\nc,"d"e\n')
    with pytest.raises(UserError, match="train.csv, line 3: this is not CSV"):
        data.load(str(tmp_path))


def test_a_file_in_another_encoding_is_named_with_its_line(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps(COLOURS[0]) + "\n")
    (tmp_path / "train.jsonl").write_bytes(b'{"query": "fine", "response": "a"}\n{"query": "caf\xe9", "response": "b"}\n')
    with pytest.raises(UserError, match="train.jsonl, line 2: this is not UTF-8"):
        data.load(str(tmp_path))


def test_a_folder_without_the_files_is_named(tmp_path):
    with pytest.raises(UserError, match="has no train.jsonl or train.csv"):
        data.load(str(tmp_path))
    with pytest.raises(UserError, match="has no train.jsonl"):
        data.load("sst2", tmp_path / "nowhere")


def test_one_example_only_is_too_few(tmp_path):
    found = data.load(own(tmp_path, COLOURS[:1], COLOURS[1:]))
    with pytest.raises(UserError, match="more than the pool of 1"):
        data.few_shot_set(found.pool, 2)


# ---- rows, the hub and its absence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, row, message", [
    ("sst2", {"sentence": "x", "label": 2}, "the label 2 is unknown"),
    ("sst2", {"text": "x", "label": 1}, "no field 'sentence' of type str .*it has text, label"),
    ("sst2", {"sentence": "x", "label": "1"}, "no field 'label' of type int"),
    ("sst2", {"sentence": "x", "label": True}, "no field 'label' of type int"),
    ("strategyqa", {"question": "x", "answer": "true"}, "no field 'answer' of type bool"),
    ("qasc", {"question": "x", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}, "answerKey 'B' is unknown"),
    ("gsm8k", {"question": "x"}, "no field 'answer'"),
])
def test_wrong_rows_of_a_benchmark_are_named_by_file_and_line(name, row, message, samples, tmp_path):
    (tmp_path / name).mkdir()
    for part in ("train", "test"):
        text = (samples / name / f"{part}.jsonl").read_text()
        (tmp_path / name / f"{part}.jsonl").write_text(text + (json.dumps(row) + "\n") * (part == "train"))
    task = "strategytf" if name == "strategyqa" else name
    with pytest.raises(UserError, match=rf"train.jsonl, line 25: .*{message}"):
        data.load(task, tmp_path)


def test_an_unknown_task_gets_the_nearest_name():
    with pytest.raises(UserError, match="did you mean movies"):
        data.load("movie")


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
    found = data.load_hub_rows(str(tmp_path), task.hub)
    assert [number for number, _ in found["train"]] == list(range(6))
    items = data.read_items(task, found["train"], name)
    assert items == data.read_items(task, list(enumerate(rows)), name)


def test_jsonl_repositories_are_read_too(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(ROWS["bbcnews"](k)) + "\n" for k in range(5)))
    found = data.load_hub_rows(str(tmp_path), tasks.TASKS["bbcnews"].hub)
    assert len(data.read_items(tasks.TASKS["bbcnews"], found["test"], "x")) == 5


@pytest.fixture
def no_hub(monkeypatch):
    import datasets
    import huggingface_hub

    def refuse(*arguments, **options):
        raise ConnectionError("no route to the hub")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", datasets.config.HF_HUB_OFFLINE)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", huggingface_hub.constants.HF_HUB_OFFLINE)


def test_without_a_hub_sst2_falls_back_loudly(no_hub):
    heard = []
    found = data.load("sst2", warn=heard.append)
    assert found.source == "stand-in movies, pypi:vaderSentiment==3.3.2" and found.task.name == "sst2"
    assert len(heard) == 1 and "stands in for sst2" in heard[0]


def test_without_a_hub_and_a_stand_in_there_is_one_sentence(no_hub):
    with pytest.raises(UserError, match="the hub cannot be reached for agnews.*--data-dir"):
        data.load("agnews")
