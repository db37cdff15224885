"""pytest tests/test_data.py: prompts, labels and tokens, few-shot sets, and your own data."""
import json
from argparse import Namespace

import pytest
from conftest import ARGS
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import folder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import data
from sources import tasks
from sources.offline import UserError


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def load(tokenizer, samples):
    """load(name, data_dir, ...) with the bundled tokenizer."""
    def load(name, data_dir=samples, tokenizer=tokenizer, **options):
        return data.load(str(name), tokenizer, Namespace(**{**vars(ARGS), "data_dir": data_dir}), **options)
    return load


def sentencepiece(pieces="abcdefghijklmnopqrstuvwxyzLTQ:\n0123456789-", more=("▁positive", "▁negative")):
    """A tokenizer of the SentencePiece kind: a text starts with a `▁`, which is a space; digits are tokens of their own."""
    words = ["<unk>", "</s>", "▁", *pieces, *(f"▁{c}" for c in pieces if c.isalpha()), *more]
    inner = Tokenizer(models.Unigram([(word, -float(len(word) < 4)) for word in words], unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="</s>")


# ---- prompts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, task in tasks.TASKS.items() if not task.snippets])
def test_every_task_reads_its_rows(name, load):
    found = load(name)
    assert found.pool and found.test and found.source.startswith("folder:")
    for example in found.pool + found.test:
        assert example.query and example.response
        if found.task.labels:
            assert example.response == found.label_texts[example.label] and found.max_tokens == 1
        else:
            assert example.label is None and found.task.parse(example.response) not in (None, "") and found.max_tokens == 200


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
def test_prompts_are_worded_as_in_the_paper(name, query, response, load):
    first = load(name).pool[0]
    assert (first.query, first.response) == (query, response)


def test_choices_are_numbered_and_the_answer_is_the_right_one(load):
    for name in ("qasc", "arc", "sciq-mc"):
        for example in load(name, style="digits").pool:
            question, *lines = example.query.removesuffix("\nAnswer:").split("\n")
            assert lines[0] == "Choices:" and [line[:3] for line in lines[1:]] == [f"[{k}]" for k in range(len(lines) - 1)]
            chosen = lines[1 + int(example.response)][3:]
            number = int(question.split()[-1 if name != "sciq-mc" else 5].strip("?"))
            assert chosen == (f"{number + 1}" if name == "sciq-mc" else f"thing {number}")
    assert len({example.label for example in load("sciq-mc").pool}) == 4, "the options of sciq are shuffled"


def test_small_models_get_a_plain_wording(load):
    assert load("sst2", plain=True, usual="words").pool[1] == data.Example(
        "Review: a warm and clever film , part 0\nSentiment:", " positive", 1)
    assert load("gsm8k", plain=True).pool[0].query.startswith("Question:")


def test_news_is_cut_at_a_word_and_neutral_rows_are_left_out(load):
    found = load("bbcnews", style="words")
    text = found.pool[0].query.removeprefix("Text:").removesuffix("\nLabel:")
    assert 240 < len(text) <= 256 and not text.endswith(" ") and "  " not in text and text.split()[-1] in "more words follow"
    assert {example.response for example in found.pool} == {" world", " sports", " business", " sci/tech"}
    assert len(load("finsen").pool) == 16 and len(load("poems").pool) == 19
    assert {example.label for example in load("finsen").pool} == {0, 1}


def test_no_test_text_is_in_the_pool(movies):
    def key(example):
        return " ".join(example.query.lower().split())
    assert len(movies.pool) > 5000 and len(movies.test) == 40
    assert not {key(e) for e in movies.pool} & {key(e) for e in movies.test} and len({key(e) for e in movies.pool}) == len(movies.pool)


def test_a_prompt_is_demos_and_query_joined_by_blank_lines(tokenizer):
    demos = [data.Example("a:", " x"), data.Example("b:", " y")]
    assert data.prompt_tokens(tokenizer, demos, "c:") == tokenizer("a: x\n\nb: y\n\nc:").input_ids


# ---- labels -----------------------------------------------------------------------------------------------------------


def test_labels_are_digits_words_or_arbitrary_names(tokenizer):
    qasc, sst2 = tasks.TASKS["qasc"], tasks.TASKS["sst2"]
    assert data.label_texts(qasc, "digits", 0, tokenizer) == list("01234567")
    assert data.label_texts(sst2, "words", 0, tokenizer) == [" negative", " positive"]
    names = data.label_texts(qasc, "remap", 1, tokenizer)
    assert len(set(names)) == 8 and names != data.label_texts(qasc, "remap", 2, tokenizer)
    assert data.label_texts(tasks.TASKS["sciq-mc"], "remap", 1, tokenizer) == names[:4], "tasks of a family share them"
    with pytest.raises(UserError, match="too few of the words.*use --labels digits or words"):
        data.label_texts(qasc, "remap", 0, sentencepiece("abc"))


@pytest.mark.parametrize("style", ["digits", "words"])
def test_a_tokenizer_of_the_sentencepiece_kind_tells_labels_apart(style, load):
    """Alone, `0` and `1` are `▁`, `0` and `▁`, `1` there; behind a query they are what the model is to answer."""
    pieces = sentencepiece()
    assert pieces.tokenize("0")[0] == pieces.tokenize("1")[0] == "▁"
    found = load("sst2", tokenizer=pieces, style=style)
    assert pieces.convert_ids_to_tokens(found.label_tokens) == (["0", "1"] if style == "digits" else ["▁negative", "▁positive"])


@pytest.mark.parametrize("style", ["digits", "words", "remap"])
def test_the_advice_never_names_the_style_in_use(style, load, tmp_path):
    rows = [{"query": f"{k}", "response": ("New York", "New Delhi")[k % 2]} for k in range(12)]
    own(tmp_path, rows[:8], rows[8:])
    broken = sentencepiece("NDYew", ())  # it knows no digit and none of the words: all labels are unknown to it
    with pytest.raises(UserError) as error:
        load(tmp_path, tokenizer=broken, style=style)
    assert "use --labels" in str(error.value) and style not in str(error.value).split("use --labels")[1]


@pytest.mark.parametrize("labels, style, texts", [
    ([0, 1], None, ["0", "1"]), ([1, 2, 3, 4, 5], None, list("12345")), (["0", "1"], "digits", ["0", "1"]),
    ([1, 2, 3, 4, 5], "digits", list("12345")), ([3, 7], "digits", ["3", "7"]), ([0.5, 2], "digits", ["0.5", "2"]),
    ([2, 1], "words", [" 1", " 2"]), (["4", "2"], "words", [" 2", " 4"]), ([True, False], None, [" false", " true"]),
])
def test_labels_that_are_numbers_stay_those_numbers(labels, style, texts, load, tmp_path):
    rows = [{"query": f"case {k} :", "response": labels[k % len(labels)]} for k in range(30)]
    own(tmp_path, rows[:20], rows[20:])
    splits_spaces = style == "words"  # a space before a digit is a token of its own in this tokenizer
    if splits_spaces:
        with pytest.raises(UserError, match="same token.*use --labels digits or remap"):
            load(tmp_path, style=style)
        assert data.label_texts(tasks.Task("x", "own", None, labels=("1", "2")), "words", 0, None) == [" 1", " 2"]
        return
    found = load(tmp_path, style=style)
    assert found.label_texts == texts
    for row, example in zip(rows, found.pool):
        assert example.response.strip() == json.dumps(row["response"]).strip('"')


def test_numbers_among_other_labels_are_not_renumbered(load, tmp_path):
    rows = [{"query": f"case {k} :", "response": (5, "none")[k % 2]} for k in range(12)]
    own(tmp_path, rows[:8], rows[8:])
    with pytest.raises(UserError, match="with --labels digits the label 5 .* would become another number; use --labels words or remap"):
        load(tmp_path, style="digits")
    assert load(tmp_path).label_texts == [" 5", " none"]


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
    for i, example in enumerate(few.train):
        demos = data.leave_one_out(few, i)
        assert example not in demos and len(demos) == 7 and {d.query for d in demos} < {d.query for d in few.train}
        assert demos == data.leave_one_out(few, i)
        orders.append([few.train.index(demo) for demo in demos])
    assert any(order != sorted(order) for order in orders)


# ---- your own data ------------------------------------------------------------------------------------------------------


def own(path, train, test, name="train.jsonl"):
    def lines(rows):
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" if isinstance(row, dict) else row for row in rows)
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(lines(train), encoding="utf-8")
    (path / "test.jsonl").write_text(lines(test), encoding="utf-8")
    return path


COLOURS = [{"query": f"The colour of {thing} is", "response": colour} for thing, colour in
           [("grass", "green"), ("snow", "white"), ("leaves", "green"), ("milk", "white"), ("moss", "green"), ("salt", "white")]]


def test_own_rows_with_few_short_responses_are_a_label_task(load, tmp_path, capsys):
    found = load(own(tmp_path, COLOURS[:4], COLOURS[4:]), plain=True)
    assert found.task.labels == ("green", "white") and found.max_tokens == 1
    assert found.pool[0] == data.Example("The colour of grass is", " green", 0)
    assert "is a label task: green, white" in capsys.readouterr().err


def test_own_rows_with_many_responses_are_free_text(load, tmp_path):
    rows = [{"query": f"{k} squared is", "response": f"the number {k * k}"} for k in range(8)]
    found = load(own(tmp_path, rows[:6], rows[6:]))
    assert found.task.labels == () and found.pool[0].response == " the number 0" and found.max_tokens == 200
    assert found.task.same(found.task.parse(" The number 4. "), found.task.parse("the number 4"))


def test_two_folders_of_one_last_name_are_two_tasks(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {load(own(tmp_path / place, COLOURS[:4], COLOURS[4:])).task.name for place in ("en/intents", "de/intents", "intents")}
    assert names == {"en/intents/", "de/intents/", "intents/"}
    assert load("./en/intents").task.name == load(tmp_path / "en" / "intents").task.name == "en/intents/"
    monkeypatch.chdir("/")
    assert load(tmp_path / "en" / "intents").task.name != load(tmp_path / "de" / "intents").task.name
    own(tmp_path / "movies", COLOURS[:4], COLOURS[4:])
    assert load(tmp_path / "movies").task.name not in tasks.TASKS


def test_repeated_queries_are_left_out_and_counted(load, tmp_path, capsys):
    found = load(own(tmp_path, [*COLOURS[:4], COLOURS[1], COLOURS[4], COLOURS[1]], COLOURS[4:]))
    assert [e.query for e in found.pool] == [row["query"] for row in COLOURS[:4]] and len(found.test) == 2
    assert "3 rows repeat a query and are left out" in capsys.readouterr().err


@pytest.mark.parametrize("part, row", [(0, {**COLOURS[1], "response": "green"}), (1, {**COLOURS[0], "response": "white"}),
                                       (0, {"query": f" {COLOURS[2]['query']}  ", "response": "white"})])
def test_repeated_queries_with_different_responses_are_refused(part, row, load, tmp_path):
    parts = [COLOURS[:4], COLOURS[4:]]
    parts[part] = [*parts[part], row]
    with pytest.raises(UserError, match=r"(train|test).jsonl, line \d: the query has the response .* here and .* in .*train.jsonl, line \d; keep one"):
        load(own(tmp_path, *parts))


def test_queries_that_differ_in_case_alone_are_two(load, tmp_path):
    rows = [{"query": f"{word} {k}:", "response": word} for k in range(4) for word in ("US", "us")]
    assert len(load(own(tmp_path, rows[:6], rows[6:])).pool) == 6


def test_blank_lines_in_a_response_are_closed_up(load, tmp_path):
    rows = [{"query": f"{k}?", "response": f"One {k}.\n\nTwo.\r\n \r\nThree {k}."} for k in range(6)]
    found = load(own(tmp_path, rows[:4], rows[4:]))
    assert found.pool[0].response == " One 0.\nTwo.\nThree 0."


@pytest.mark.parametrize("rows, message", [
    ([{"query": "a", "respnse": "b"}], r"train.jsonl, line 1: the row has no field 'response' .*it has query, respnse"),
    ([COLOURS[0], {"query": "a", "response": ["b"]}], r"line 2: the row has no field 'response' of type str"),
    ([COLOURS[0], {"query": "a", "response": None}], r"line 2: the row has no field 'response' of type str"),
    ([COLOURS[0], {"query": " ", "response": "b"}], r"line 2: the field 'query' is empty"),
    ([COLOURS[0], {"query": "b", "response": " "}], r"line 2: the field 'response' is empty"),
    ([COLOURS[0], "{broken\n"], r"train.jsonl, line 2: this is not a JSON object"),
    ([COLOURS[0], "[1, 2]\n"], r"line 2: the row has no field 'query' .*no JSON object"),
    ([COLOURS[0], '{"query": "\\ud83d", "response": "x"}\n'], r"line 2: half of a surrogate pair"),
    ([COLOURS[0], COLOURS[1], '{"query": "x", "response": "\\udc00y"}\n'], r"line 3: half of a surrogate pair"),
    (['{"query": "x", "\\ud800": "y"}\n'], r"line 1: half of a surrogate pair"),
    ([], r"train.jsonl holds no rows"), (["\n\n"], r"train.jsonl holds no rows"),
])
def test_wrong_own_rows_are_named_by_file_and_line(rows, message, load, tmp_path):
    with pytest.raises(UserError, match=message):
        load(own(tmp_path, rows, COLOURS))


def test_a_whole_surrogate_pair_is_a_character(load, tmp_path):
    rows = ['{"query": "\\ud83d\\ude00 0", "response": "joy"}\n', {"query": "😢 1", "response": "tears"}] * 2
    assert load(own(tmp_path, rows, [{"query": f"x{k}", "response": r} for k, r in enumerate(["joy", "tears"])])).pool[0].query == "😀 0"


# ---- CSV ----------------------------------------------------------------------------------------------------------------


def csv(path, train, test="query,response\ne,yes\nf,no\n"):
    (path / "train.csv").write_text(train, encoding="utf-8-sig")
    (path / "test.csv").write_text(test, encoding="utf-8")
    return path


def test_own_rows_can_be_csv(load, tmp_path):
    found = load(csv(tmp_path, 'query,response\n"a, b",yes\nc,no,,\n"two\nlines",yes\nd,no,\n'))
    assert [example.query for example in found.pool] == ["a, b", "c", "two\nlines", "d"]
    assert found.task.labels == ("no", "yes")


@pytest.mark.parametrize("row, line", [("The box, crushed, arrived late,shipping", 3), ("a,b,c", 3), ('"two\nlines",yes,no', 4)])
def test_a_csv_row_with_more_fields_than_the_header_is_named_with_its_line(row, line, load, tmp_path):
    with pytest.raises(UserError, match=f"train.csv, line {line}: the row has more fields than in the header; put quotes"):
        load(csv(tmp_path, f"query,response\nx,yes\n{row}\ny,no\n"))


def test_broken_csv_is_named_with_its_line(load, tmp_path):
    with pytest.raises(UserError, match=r"train.csv, line \d: this is not CSV"):
        load(csv(tmp_path, 'query,response\na,b\nc,"d"e\n'))
    with pytest.raises(UserError, match="line 3: the row has no field 'response'"):
        load(csv(tmp_path, "query,response\na,yes\nb\n"))


def test_a_benchmark_as_csv_reads_numbers_and_truth_values_as_such(load, tmp_path):
    (tmp_path / "sst2").mkdir(), (tmp_path / "strategyqa").mkdir(), (tmp_path / "arc").mkdir()
    csv(tmp_path / "sst2", "idx,sentence,label\n1,7,1\n2,bad,0\n", "sentence,label\nfine,1\n")
    csv(tmp_path / "strategyqa", "question,answer\nIs it?,True\nOr not?,false\n", "question,answer\nSo?,TRUE\n")
    choices = '"{""text"": [""a"", ""b"", ""c"", ""d""], ""label"": [""A"", ""B"", ""C"", ""D""]}"'
    csv(tmp_path / "arc", f"question,choices,answerKey\nWhich?,{choices},B\n", f"question,choices,answerKey\nWhat?,{choices},D\n")
    assert [(e.query, e.label) for e in load("sst2", tmp_path).pool] == [("Text:7\nLabel:", 1), ("Text:bad\nLabel:", 0)]
    assert [e.label for e in load("strategytf", tmp_path).pool] == [1, 0] and load("arc", tmp_path).pool[0].label == 1
    csv(tmp_path / "sst2", "sentence,label\nx,1.5\n")
    with pytest.raises(UserError, match="line 2: the row has no field 'label' of type int"):
        load("sst2", tmp_path)
