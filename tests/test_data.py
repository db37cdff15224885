"""pytest tests/test_data.py: prompts, labels and tokens, few-shot sets, and your own data."""

import json
import re
from dataclasses import replace

import pytest
from conftest import short_ones
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import folder, write_lines
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import data
import ia2
from data import Example
from lab import adapters, sweep
from sources import readers, tasks
from support import cli
from support.cli import UserError


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def load(tokenizer, samples):
    """load(name, ...options) reads a sample of a benchmark, or a folder, for the bundled model."""

    def load(name, data_dir=samples, tokenizer=tokenizer, **options):
        return data.load(str(name), tokenizer, data.Options(data_dir=data_dir, **options))

    return load


# ---- tokenizers of other kinds -------------------------------------------------------------------

CHARACTERS = "abcdefghijklmnopqrstuvwxyzLTQ:\n0123456789-"


def sentencepiece(characters=CHARACTERS, more=("▁positive", "▁negative")):
    """A tokenizer of the SentencePiece kind: a text starts with a `▁`, which is a space.

    Its tokens are single characters, letters also behind a `▁`, and `more`; all else is unknown.
    """
    words = ["<unk>", "</s>", "▁", *characters]
    words += [f"▁{c}" for c in characters if c.isalpha()]
    words += more
    scores = [(word, 0.0 if len(word) > 3 else -1.0) for word in words]
    inner = Tokenizer(models.Unigram(scores, unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="</s>")


def characters_with_ends():
    """One token a character, small letters only, between a beginning and an end."""
    letters = "abcdefghijklmnopqrstuvwxyz :\n"
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2}
    for character in letters:
        vocabulary[character] = len(vocabulary)
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.decoder = decoders.Fuse()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


# ---- prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [task.name for task in tasks.TASKS.values() if not task.snippets])
def test_every_task_reads_its_rows(name, load):
    task = load(name)
    assert task.pool and task.test
    assert task.source.startswith("folder:")
    for example in task.pool + task.test:
        assert example.query and example.response
        if task.spec.labels:
            assert example.response == task.label_texts[example.label]
            assert task.max_tokens == 1
        else:
            assert example.label is None
            assert task.spec.parse(example.response) not in (None, "")
            assert task.max_tokens == 200


@pytest.mark.parametrize(
    "name, query, response",
    [
        ("sst2", "Text:a dull and noisy film , part 0\nLabel:", "0"),
        ("finsen", "Text:Profit fell by 0 percent .\nLabel:", "0"),
        (
            "agnews",
            "Text:The council met to sign a treaty between two countries, report 0\nLabel:",
            "0",
        ),
        ("strategytf", "Question:Is 0 an even number?\nAnswer:", "1"),
        (
            "gsm8k",
            "Question:Ann has 0 pens and buys 2. How many has she?\nAnswer:",
            " She has 0 + 2 = <<0+2=2>>2 pens.\n#### 2",
        ),
        (
            "sciq",
            "Question:What do you get from 0 plus 1?\nAnswer:",
            " One more than 0 is 1.\n#### 1",
        ),
        (
            "hmath-algebra",
            "Question:Solve $x = 0 + 1$.\nAnswer:",
            " We add: $x = \\boxed{1}$.",
        ),
    ],
)
def test_prompts_are_worded_as_in_the_paper(name, query, response, load):
    first = load(name).pool[0]
    assert first.query == query
    assert first.response == response


@pytest.mark.parametrize("style", cli.LABEL_STYLES)
@pytest.mark.parametrize("name", ["qasc", "arc", "sciq-mc"])
def test_options_carry_the_labels_texts_and_the_answer_is_the_right_one(name, style, load):
    task = load(name, labels=style)
    for example in task.pool:
        question, choices, *lines = example.query.removesuffix("\nAnswer:").split("\n")
        assert choices == "Choices:"
        options = {}
        for line in lines:
            label, option = line.removeprefix("[").split("]")
            options[label] = option
        assert list(options) == [text.strip() for text in task.label_texts]
        words = question.removeprefix("Question:").strip("?").split()
        right = " ".join(words[2:])  # Which is thing 3
        if name == "sciq-mc":
            right = str(int(words[5]) + 1)  # What do you get from 3 plus 1
        assert options[example.response.strip()] == right


def test_the_options_of_sciq_are_shuffled(load):
    assert {example.label for example in load("sciq-mc").pool} == {0, 1, 2, 3}


def test_small_models_get_a_plain_wording(load):
    task = load("sst2", plain=True, default_labels="words")
    query = "Review: a warm and clever film , part 0\nSentiment:"
    assert task.pool[1] == Example(query, " positive", 1)
    assert load("gsm8k", plain=True).pool[0].query.startswith("Question:")


def test_digits_and_arbitrary_names_are_asked_for_as_the_paper_does_also_of_small_models(load):
    for style in ("digits", "remap"):
        assert load("sst2", plain=True, labels=style).pool[0].query.startswith("Text:")


def test_what_is_asked_for_goes_before_the_tasks_own_style_and_that_before_the_models(load):
    assert load("sst2", default_labels="words").label_style == "words"
    assert load("sst2", default_labels="words", labels="digits").label_style == "digits"
    assert load("arc", default_labels="words").label_style == "remap"
    assert load("arc", labels="words").label_style == "words"
    assert load("sst2").label_style == "digits"


def test_responses_of_free_text_can_be_made_shorter_and_labels_are_one_token(load):
    assert load("gsm8k", max_tokens=30).max_tokens == 30
    assert load("sst2", max_tokens=30).max_tokens == 1


def test_news_is_cut_at_a_word_and_neutral_rows_are_left_out(load):
    task = load("bbcnews", labels="words")
    text = task.pool[0].query.removeprefix("Text:").removesuffix("\nLabel:")
    assert 240 < len(text) <= 256
    assert not text.endswith(" ") and "  " not in text
    assert text.split()[-1] in ("more", "words", "follow")
    responses = {example.response for example in task.pool}
    assert responses == {" world", " sports", " business", " sci/tech"}
    assert len(load("finsen").pool) == 16
    assert len(load("poems").pool) == 19
    assert {example.label for example in load("finsen").pool} == {0, 1}


def test_no_test_text_is_in_the_pool(movies, tokenizer):
    def keys(examples):
        return [" ".join(example.query.lower().split()) for example in examples]

    whole = data.load("movies", tokenizer, data.Options(default_labels="words", plain=True))
    assert len(whole.pool) > 5000
    assert len(whole.test) > 500
    assert not set(keys(whole.pool)) & set(keys(whole.test))
    assert len(set(keys(whole.pool))) == len(whole.pool)
    assert len(movies.test) == 40
    assert movies.pool == short_ones(whole.pool)


# ---- which test queries --------------------------------------------------------------------------


def test_test_queries_are_drawn_by_seed_and_anew_for_each_few_shot_set(movies):
    drawn = data.draw_test(movies, 20)
    assert drawn == data.draw_test(movies, 20)
    queries = [example.query for example in drawn.test]
    assert len(set(queries)) == 20
    assert set(queries) < {example.query for example in movies.test}
    assert drawn.pool == movies.pool
    assert data.draw_test(movies, 20, seed=1).test != drawn.test
    assert data.draw_test(movies, 20, number=1).test != drawn.test


@pytest.mark.parametrize("count", [40, 1000])
def test_a_test_part_that_is_not_larger_is_taken_whole(count, movies):
    assert data.draw_test(movies, count) == movies


def test_tests_are_worded_like_the_training_task(tokenizer, samples):
    options = data.Options(data_dir=samples, labels="words")
    training, tests = data.load_with_tests("sst2", ["finsen", "sst2", "finsen"], tokenizer, options)
    assert [test.spec.name for test in tests] == ["finsen", "sst2"], "each once, in their order"
    assert tests[0].label_texts == training.label_texts == [" negative", " positive"]
    assert tests[1] == training
    assert data.load_with_tests("sst2", [], tokenizer, options)[1] == [training]


def test_a_task_whose_own_style_is_another_is_worded_like_the_training_task(tokenizer, samples):
    options = data.Options(data_dir=samples, labels="digits")
    training, [test] = data.load_with_tests("arc", ["sciq-mc"], tokenizer, options)
    assert test.label_texts == training.label_texts == list("0123")


def test_a_benchmark_is_worded_like_the_users_own_task(tokenizer, samples, tmp_path):
    """Alone, sst2 would have digits; a model that learned words is asked for words."""
    rows = [{"query": f"case {k} :", "response": ("negative", "positive")[k % 2]} for k in range(8)]
    path = own(tmp_path, rows[:4], rows[4:])
    options = data.Options(data_dir=samples)
    training, [test] = data.load_with_tests(str(path), ["sst2"], tokenizer, options)
    assert training.label_style == test.label_style == "words"
    assert training.label_texts == test.label_texts == [" negative", " positive"]


def test_tests_that_do_not_fit_are_one_sentence(tokenizer, samples, monkeypatch):
    options = data.Options(data_dir=samples)
    with pytest.raises(UserError, match="trained on sst2 cannot be tested on agnews"):
        data.load_with_tests("sst2", ["agnews"], tokenizer, options)

    def read(*_):
        raise AssertionError("an unknown name fails before anything is read")

    monkeypatch.setattr(tasks, "read_task", read)
    with pytest.raises(UserError, match="unknown dataset 'finsem'.*did you mean finsen"):
        data.load_with_tests("sst2", ["finsem"], tokenizer, options)


@pytest.fixture
def no_hub(monkeypatch):
    """Tasks of the hub cannot be read."""
    read_task = tasks.read_task

    def without_hub(task, data_dir=None):
        if task.hub and data_dir is None:
            raise readers.NoHub("the hub cannot be reached")
        return read_task(task, data_dir)

    monkeypatch.setattr(tasks, "read_task", without_hub)


def test_without_a_hub_a_stand_in_is_used_and_said(tokenizer, no_hub, capsys):
    task = data.load("sst2", tokenizer)
    assert task.spec.name == "sst2"
    assert task.source.startswith("stand-in movies, pypi:vaderSentiment")
    assert task.pool == data.load("movies", tokenizer).pool
    assert "warning: the hub cannot be reached, so movies" in capsys.readouterr().err
    with pytest.raises(readers.NoHub):
        data.load("agnews", tokenizer)


SAME = "sst2 and movies are the same texts here|movies and sst2 are the same texts here"


@pytest.mark.parametrize(
    "training, tests, refused",
    [
        ("sst2", ["sst2", "movies"], True),
        ("sst2", ["movies"], True),
        ("movies", ["amazon", "sst2"], True),
        ("amazon", ["movies", "amazon", "sst2"], True),
        ("sst2", ["sst2", "amazon"], False),
        ("movies", ["amazon", "movies"], False),
    ],
)
def test_two_names_of_the_same_texts_are_refused(training, tests, refused, tokenizer, no_hub):
    """Without a hub `sst2` is `movies`: the second would pass for a test out of domain."""
    if refused:
        with pytest.raises(UserError, match=f"({SAME}) .*; use one of the two names"):
            data.load_with_tests(training, tests, tokenizer)
    else:
        _, loaded = data.load_with_tests(training, tests, tokenizer)
        assert [test.spec.name for test in loaded] == tests


def test_two_folders_with_the_same_rows_are_refused(tokenizer, tmp_path):
    folders = [own(tmp_path / name, COLOURS[:4], COLOURS[4:]) for name in ("one", "two")]
    with pytest.raises(UserError, match="one/ and .*two/ are the same texts here"):
        data.load_with_tests(str(folders[0]), [str(folders[1])], tokenizer)
    own(
        folders[1],
        COLOURS[:4],
        [*COLOURS[4:], {"query": "The colour of ice is", "response": "white"}],
    )
    data.load_with_tests(str(folders[0]), [str(folders[1])], tokenizer)


def test_one_folder_may_be_named_in_two_ways(tokenizer, tmp_path, monkeypatch):
    own(tmp_path / "mine", COLOURS[:4], COLOURS[4:])
    monkeypatch.chdir(tmp_path)
    for names in (["mine/"], ["./mine", "mine/"], [str(tmp_path / "mine")]):
        task, tests = data.load_with_tests("mine", names, tokenizer)
        assert [test.spec.name for test in tests] == ["mine/"] == [task.spec.name]
        assert list(data.load_alike(["mine", *names], tokenizer, data.Options())) == ["mine/"]


@pytest.mark.parametrize("main", [ia2.main, sweep.main, adapters.main])
def test_every_command_refuses_two_names_of_the_same_texts(main, call, no_hub, tmp_path):
    """Before a model is loaded: an adapter's folder need not hold weights."""
    (tmp_path / "adapter_config.json").write_text("{}")
    words = [tmp_path] if main is adapters.main else ["--dataset", "sst2"]
    words += ["--eval", "sst2", "movies", "--data-dir", ""]
    ran = call(*words, main=main, quick=("--test", "6"))
    assert ran.code == 2 and ran.out == ""
    assert re.match(f"error: ({SAME})", ran.err.splitlines()[-1])


def test_unrelated_texts_are_not_those_of_a_task_and_the_same_at_every_call(tokenizer, movies):
    prompts = data.unrelated_prompts(tokenizer, [movies], 20)
    assert len(prompts) == 20
    lengths = [len(prompt) for prompt in prompts]
    assert lengths == sorted(lengths)
    assert lengths[-1] == data.UNRELATED_TOKENS
    assert prompts == data.unrelated_prompts(tokenizer, [movies], 20)
    tweets = data.load("tweets", tokenizer)
    texts = {tokenizer.decode(prompt) for prompt in data.unrelated_prompts(tokenizer, [tweets], 20)}
    assert len(texts) == 20
    assert not any(text in example.query for text in texts for example in tweets.test)


def test_unrelated_texts_that_cannot_be_fetched_are_left_out_and_said(
    tokenizer, movies, monkeypatch, capsys
):
    def read(*_):
        raise UserError("no network; check it")

    monkeypatch.setattr(tasks, "read_task", read)
    assert data.unrelated_prompts(tokenizer, [movies]) == []
    assert "is not measured (no network; check it)" in capsys.readouterr().err


# ---- tokens --------------------------------------------------------------------------------------


def test_a_prompt_is_demos_and_query_joined_by_blank_lines(tokenizer):
    demos = [Example("a:", " x"), Example("b:", " y")]
    prompt = data.prompt_tokens(tokenizer, demos, "c:")
    assert tokenizer.decode(prompt) == "a: x\n\nb: y\n\nc:"
    assert data.prompt_tokens(tokenizer, [], "c:") == tokenizer("c:").input_ids


def test_a_demos_query_ends_as_the_last_query_does(tokenizer):
    """No token spans the join of query and response: `cat` and `s` are not read as `cats`."""
    query = "The plural of cat is cat"
    [following] = tokenizer("s").input_ids
    alone = tokenizer(query).input_ids
    prompt = data.prompt_tokens(tokenizer, [Example(query, "s")], query)
    assert prompt[: len(alone) + 1] == [*alone, following]
    assert prompt[-len(alone) :] == alone
    assert tokenizer.decode(prompt) == f"{query}s\n\n{query}"
    assert prompt != tokenizer(f"{query}s\n\n{query}").input_ids


@given(st.lists(st.tuples(st.text("ab c:", min_size=1), st.text("ab c:", min_size=1)), max_size=3))
@settings(max_examples=30)
def test_no_text_of_a_prompt_is_lost(pairs):
    tokenizer = characters_with_ends()
    demos = [Example(query, response) for query, response in pairs]
    text = "\n\n".join([*(query + response for query, response in pairs), "c:"])
    expected = [0, *(tokenizer.convert_tokens_to_ids(character) for character in text)]
    assert data.prompt_tokens(tokenizer, demos, "c:") == expected


def test_a_prompt_has_one_beginning_and_no_end():
    tokenizer = characters_with_ends()
    assert tokenizer("ab").input_ids == [0, 3, 4, 1]
    assert data.prompt_tokens(tokenizer, [], "ab") == [0, 3, 4]
    prompt = data.prompt_tokens(tokenizer, [Example("a:", " b"), Example("b:", " c")], "c:")
    assert prompt.count(0) == 1 and prompt[0] == 0
    assert 1 not in prompt
    assert data.new_tokens(tokenizer, "a:", " b") == tokenizer.convert_tokens_to_ids([" ", "b"])


def test_the_true_response_is_a_labels_first_token_or_a_text_and_its_end(tokenizer):
    label = Example("Label:", " sci/tech", 3)
    first, *others = tokenizer(" sci/tech").input_ids
    assert others
    assert data.gold_tokens(tokenizer, label, 1) == [first]
    text = Example("Answer:", " one two three")
    tokens = [*tokenizer(" one two three").input_ids, tokenizer.eos_token_id]
    assert data.gold_tokens(tokenizer, text, 200) == tokens
    assert data.gold_tokens(tokenizer, text, 2) == tokens[:2]


def test_queries_behind_demos_run_in_their_order_and_each_block_has_its_order(
    tokenizer, movies, few_shot
):
    """A query's demos depend on its place alone, not on the other queries' lengths."""
    blocks = data.query_blocks(tokenizer, movies.test, few_shot)
    assert [len(block.numbers) for block in blocks] == [16, 16, 8]
    for number, block in enumerate(blocks):
        assert sorted(block.numbers) == list(range(16 * number, min(16 * number + 16, 40)))
        demos = data.icl_demos(few_shot, number)
        for i, prompt in zip(block.numbers, block.prompts):
            assert prompt == data.prompt_tokens(tokenizer, demos, movies.test[i].query)
        lengths = [len(prompt) for prompt in block.prompts]
        assert lengths == sorted(lengths)
    longer = [replace(movies.test[0], query="word " * 300), *movies.test[1:]]
    again = data.query_blocks(tokenizer, longer, few_shot)
    assert by_number(again)[5] == by_number(blocks)[5]


def by_number(blocks):
    return {i: prompt for block in blocks for i, prompt in zip(block.numbers, block.prompts)}


def test_queries_alone_run_with_those_of_their_length_and_each_once(tokenizer, movies):
    blocks = data.query_blocks(tokenizer, movies.test)
    assert [len(block.numbers) for block in blocks] == [16, 16, 8]
    lengths = [len(prompt) for block in blocks for prompt in block.prompts]
    assert lengths == sorted(lengths)
    prompts = by_number(blocks)
    assert sorted(prompts) == list(range(40))
    for i, prompt in prompts.items():
        assert prompt == data.prompt_tokens(tokenizer, [], movies.test[i].query)


# ---- what responses answer -----------------------------------------------------------------------


def free_text(load, path, responses):
    """A task of free text, with these true responses to its test queries."""
    rows = [{"query": f"Command {k}:", "response": text} for k, text in enumerate(responses)]
    others = [{"query": f"Other {k}:", "response": f"other {k}"} for k in range(4)]
    task = load(own(path, others, rows))
    assert not task.label_texts
    return task


@pytest.mark.parametrize(
    "special, text",
    [
        ("<filename>", "cp <filename> /tmp"),
        ("<repo_name>", "git clone <repo_name>"),
        ("<|im_start|>", "<|im_start|>user says hello"),
        ("<empty_output>", "<empty_output>"),
    ],
)
def test_special_tokens_in_a_response_are_part_of_it(special, text, load, tokenizer, tmp_path):
    """They are the tokenizer's; a user's text may hold them too."""
    assert special in tokenizer.get_added_vocab()
    test = free_text(load, tmp_path, [text, text.replace(special, "x")])
    response = [*tokenizer(f" {text}").input_ids, tokenizer.eos_token_id]
    answers, right = data.read_answers(
        tokenizer, test, [response, response], {tokenizer.eos_token_id}
    )
    assert answers == [text] * 2
    assert right == [True, False]


def test_the_end_token_is_no_answer_and_only_the_last_one_is_an_end(load, tokenizer, tmp_path):
    end = tokenizer.eos_token_id
    test = free_text(load, tmp_path, ["ls -l"] * 5)
    texts = [" ls -l", " ls -l\n\nand more", "", " ls", " ls -l\r\n\r\nand more"]
    responses = [[*tokenizer(text).input_ids, end] for text in texts]
    responses[3] = responses[3][:-1]  # cut off at the most tokens
    answers, right = data.read_answers(tokenizer, test, responses, {end})
    assert answers == ["ls -l", "ls -l", "", "ls", "ls -l"]
    assert right == [True, True, False, False, True]


def test_a_response_that_the_tokenizer_writes_in_another_way_is_right(load, tmp_path):
    """`ab?` comes back as `ab<unk>`: the best that a model can answer under this tokenizer."""
    tokenizer = characters_with_ends()
    test = free_text(load, tmp_path, ["ab?", "ab", "abc"])
    response = tokenizer(" ab?", add_special_tokens=False).input_ids
    assert tokenizer.decode(response) == " ab<unk>"
    _, right = data.read_answers(tokenizer, test, [response] * 3, {1})
    assert right == [True, False, False]


def normalising(form):
    """A tokenizer of bytes behind a Unicode normal form, as many have one."""
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "</s>"]
    inner = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    inner.normalizer = form()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


@pytest.mark.parametrize("form", [normalizers.NFC, normalizers.NFD, normalizers.NFKC])
@pytest.mark.parametrize(
    "text", ["cafe\u0301", "café", "½ cup", "km²", "-5 or \u22125", "ﬁve ﬂags", "x² + ½"]
)
def test_a_true_response_is_right_whatever_form_the_tokenizer_gives_it(form, text, load, tmp_path):
    tokenizer = normalising(form)
    test = free_text(load, tmp_path, [text, f"{text} more"])
    response = [*tokenizer(f" {text}").input_ids, tokenizer.eos_token_id]
    _, right = data.read_answers(tokenizer, test, [response] * 2, {tokenizer.eos_token_id})
    assert right == [True, False]


def test_true_responses_are_right(load, tokenizer):
    task = load("gsm8k")
    end = tokenizer.eos_token_id
    responses = [data.gold_tokens(tokenizer, example, 200) for example in task.test]
    assert all(response[-1] == end for response in responses)
    answers, right = data.read_answers(tokenizer, task, responses, {end})
    assert answers == [2 * k + 2 for k in range(100, 108)]
    assert all(right)


# ---- labels --------------------------------------------------------------------------------------


def test_labels_are_digits_words_or_arbitrary_names(tokenizer):
    qasc = tasks.TASKS["qasc"]
    sst2 = tasks.TASKS["sst2"]
    assert data.write_labels(qasc, "digits", 0, tokenizer) == list("01234567")
    assert data.write_labels(sst2, "words", 0, tokenizer) == [" negative", " positive"]
    names = data.write_labels(qasc, "remap", 1, tokenizer)
    assert len(set(names)) == 8
    assert names != data.write_labels(qasc, "remap", 2, tokenizer)
    assert all(len(tokenizer(name).input_ids) == 1 for name in names)
    four = data.write_labels(tasks.TASKS["sciq-mc"], "remap", 1, tokenizer)
    assert four == names[:4], "tasks of a family share them"


def test_too_few_names_of_one_token_are_one_sentence(load):
    with pytest.raises(
        UserError, match="too few of the words.* as one token; use --labels digits$"
    ):
        load("qasc", tokenizer=sentencepiece(), labels="remap")


@pytest.mark.parametrize(
    "characters, more, advice",
    [
        ("NDYewyorklhi01", ("▁New▁Y", "▁New▁D"), "--labels digits or words"),
        ("NDYewyorklhi01", (), "--labels digits"),
        ("NDYewyorklhi", ("▁New▁Y", "▁New▁D"), "--labels words"),
        ("NDYewyorklhi", (), "another model"),
    ],
)
def test_where_arbitrary_names_do_not_do_the_styles_that_work_are_named(
    characters, more, advice, load, tmp_path
):
    """` New York` and ` New Delhi` start with the same token unless they are tokens."""
    rows = [{"query": f"{k}y", "response": ("New York", "New Delhi")[k % 2]} for k in range(12)]
    own(tmp_path, rows[:8], rows[8:])
    with pytest.raises(UserError) as error:
        load(tmp_path, tokenizer=sentencepiece(characters, more), labels="remap")
    assert "too few of the words for --labels remap" in str(error.value)
    assert str(error.value).split("; use ")[1] == advice


@pytest.mark.parametrize(
    "style, tokens", [("digits", ["0", "1"]), ("words", ["▁negative", "▁positive"])]
)
def test_a_tokenizer_of_the_sentencepiece_kind_tells_labels_apart(style, tokens, load):
    """Alone, `0` and `1` are `▁`, `0` and `▁`, `1`; behind a query the `▁` is not there."""
    pieces = sentencepiece()
    assert pieces.tokenize("0")[0] == pieces.tokenize("1")[0] == "▁"
    task = load("sst2", tokenizer=pieces, labels=style)
    assert pieces.convert_ids_to_tokens(task.label_tokens) == tokens


NAMES = ("▁apple", "▁river", "▁stone")  # of `remap`


@pytest.mark.parametrize(
    "asked, characters, more, advice",
    [
        ("words", "NDYewyorklhi0123456789", (), "--labels digits"),
        ("words", "NDYewyorklhi", NAMES, "--labels remap"),
        ("words", "NDYewyorklhi01", NAMES, "--labels digits or remap"),
        ("digits", "NDYewyorklhi", ("▁New▁Y", "▁New▁D"), "--labels words"),
        ("digits", "NDYewyorklhi", ("▁New▁Y", "▁New▁D", *NAMES), "--labels words or remap"),
        ("words", "NDYewyorklhi", (), "another model"),
        ("digits", "NDYewyorklhi", (), "another model"),
    ],
)
def test_labels_that_cannot_be_told_apart_name_the_styles_that_work(
    asked, characters, more, advice, load, tmp_path
):
    """What a tokenizer does not know is its unknown token, whatever the label."""
    rows = [{"query": f"{k}y", "response": ("New York", "New Delhi")[k % 2]} for k in range(12)]
    own(tmp_path, rows[:8], rows[8:])
    with pytest.raises(UserError) as error:
        load(tmp_path, tokenizer=sentencepiece(characters, more), labels=asked)
    message = str(error.value)
    assert "start with the same token under this model's tokenizer" in message
    assert message.split("; use ")[1] == advice


@pytest.mark.parametrize(
    "labels, style, texts",
    [
        ([0, 1], None, ["0", "1"]),
        ([1, 2, 3, 4, 5], None, list("12345")),
        (["0", "1"], "digits", ["0", "1"]),
        ([1, 2, 3, 4, 5], "digits", list("12345")),
        ([3, 7], "digits", ["3", "7"]),
        ([0.5, 2], "digits", ["0.5", "2"]),
        ([True, False], None, [" false", " true"]),
    ],
)
def test_labels_that_are_numbers_stay_those_numbers(labels, style, texts, load, tmp_path):
    rows = [{"query": f"case {k} :", "response": labels[k % len(labels)]} for k in range(30)]
    task = load(own(tmp_path, rows[:20], rows[20:]), labels=style)
    assert task.label_texts == texts
    for row, example in zip(rows, task.pool):
        assert example.response.strip() == json.dumps(row["response"]).strip('"')


@pytest.mark.parametrize("labels", [[2, 1], ["4", "2"]])
def test_a_space_before_a_digit_that_is_a_token_of_its_own_is_one_sentence(labels, load, tmp_path):
    rows = [{"query": f"case {k} :", "response": labels[k % 2]} for k in range(30)]
    own(tmp_path, rows[:20], rows[20:])
    with pytest.raises(UserError, match="same token.*use --labels digits or remap"):
        load(tmp_path, labels="words")
    task = tasks.Task("x", "own", None, labels=("1", "2"))
    assert data.write_labels(task, "words", 0, None) == [" 1", " 2"]


@pytest.mark.parametrize(
    "labels, more, advice",
    [
        ((5, "none"), ("▁none", "▁5", *NAMES), "--labels words or remap"),
        ((5, "none"), ("▁none", "▁5"), "--labels words"),
        (("none", "no"), NAMES, None),  # no number among them
        ((5, "5 or so"), ("▁5", *NAMES), "--labels remap"),
        ((7, "7 or so"), ("▁7",), "another model"),
    ],
)
def test_numbers_among_other_labels_are_not_renumbered(labels, more, advice, load, tmp_path):
    rows = [{"query": f"case {k} :", "response": labels[k % 2]} for k in range(12)]
    own(tmp_path, rows[:8], rows[8:])
    pieces = sentencepiece("acesonr :0123456789", more)
    if advice is None:
        assert load(tmp_path, tokenizer=pieces, labels="digits").label_texts == ["0", "1"]
        return
    with pytest.raises(UserError) as error:
        load(tmp_path, tokenizer=pieces, labels="digits")
    message = f"with --labels digits the label {labels[0]} of "
    assert str(error.value).startswith(message)
    assert "would become another number" in str(error.value)
    assert str(error.value).split("; use ")[1] == advice


def test_numbers_and_words_as_labels_are_asked_for_as_they_are(load, tmp_path):
    rows = [{"query": f"case {k} :", "response": (5, "none")[k % 2]} for k in range(12)]
    assert load(own(tmp_path, rows[:8], rows[8:])).label_texts == [" 5", " none"]


# ---- few-shot sets -------------------------------------------------------------------------------

POOL = [Example(f"q{k}", f"{k % 3}", k % 3) for k in range(90)]
SIZES = st.integers(2, 40)


@given(st.integers(0, 10**6), st.integers(0, 50), st.booleans(), SIZES, SIZES)
@settings(max_examples=60)
def test_few_shot_sets_are_seeded_nested_disjoint_and_balanced(seed, number, balanced, n1, n2):
    small = min(n1, n2)
    large = max(n1, n2)
    few = data.few_shot_set(POOL, small, number, seed, balanced)
    many = data.few_shot_set(POOL, large, number, seed, balanced)
    assert few.train == many.train[:small]
    assert few.dev == many.dev[: small // 2]
    assert many.demos == many.train
    assert len(many.train) == large
    assert len(many.dev) == large // 2
    assert len({example.query for example in many.train + many.dev}) == large + large // 2
    assert many == data.few_shot_set(list(POOL), large, number, seed, balanced)
    if balanced:
        for part in (many.train, many.dev):
            counts = [sum(example.label == label for example in part) for label in range(3)]
            assert max(counts) - min(counts) <= 1
        labels = [example.label for example in many.train]
        assert labels[3:] == labels[:-3], "labels alternate"


def test_random_sets_are_uniform_draws_and_differ():
    counts = [0] * 3
    for number in range(400):
        for example in data.few_shot_set(POOL, 4, number).train:
            counts[example.label] += 1
    assert all(abs(count - 1600 / 3) < 80 for count in counts)
    first = data.few_shot_set(POOL, 8).train
    assert first != data.few_shot_set(POOL, 8, number=1).train
    assert first != data.few_shot_set(POOL, 8, seed=1).train


def test_any_label_can_be_the_first_of_a_balanced_set():
    """So that with fewer examples than labels no label is always the one left out."""
    labels = {data.few_shot_set(POOL, 2, k, balanced=True).train[0].label for k in range(30)}
    assert labels == {0, 1, 2}


@pytest.mark.parametrize(
    "n, balanced, message",
    [
        (1, False, "n must be at least 2, not 1"),
        (61, False, "more than the pool of 90 has; use a smaller --n"),
        (90, False, "more than the pool of 90 has; use a smaller --n"),
        (62, True, r"more than the pool of 90 has of the label \d; use a smaller --n"),
    ],
)
def test_n_that_does_not_fit_is_refused(n, balanced, message):
    with pytest.raises(UserError, match=message):
        data.few_shot_set(POOL, n, balanced=balanced)
    assert len(data.few_shot_set(POOL, 60, balanced=balanced).dev) == 30, "the most that fits"


def test_a_dev_example_is_never_a_training_example_also_in_the_smallest_pool():
    """One example a label: two would train, and the dev example would be the first of them."""
    with pytest.raises(UserError, match="more than the pool of 3 has of the label"):
        data.few_shot_set(POOL[:3], 2, balanced=True)
    few = data.few_shot_set(POOL[:3], 2)
    assert few.dev[0] not in few.train


@pytest.mark.parametrize("n, count", [(8, 2), (2, 1), (16, 7)])
def test_a_label_too_rare_for_balanced_sets_is_named_with_the_way_out(n, count):
    common = [Example(f"c{k}", " common", k % 2) for k in range(40)]
    pool = [*common, *(Example(f"r{k}", " rare", 2) for k in range(count))]
    message = (
        f"n = {n} needs {n} training and {n // 2} dev examples, more than the pool of "
        f"{len(pool)} has of the label rare; use a smaller --n or --no-balanced"
    )
    with pytest.raises(UserError, match=message):
        data.few_shot_set(pool, n, balanced=True)
    assert len(data.few_shot_set(pool, n).train) == n


def test_sets_of_free_text_are_the_same_balanced_or_not():
    pool = [Example(f"q{k}", f" {k}") for k in range(20)]
    balanced = data.few_shot_set(pool, 4, balanced=True)
    assert balanced.train == data.few_shot_set(pool, 4).train
    with pytest.raises(UserError, match="pool of 20 has; use a smaller --n$"):
        data.few_shot_set(pool, 14, balanced=True)


@pytest.mark.parametrize(
    "asked, default, expected",
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_sets_are_balanced_as_asked_or_as_suits_the_model_and_free_text_never(
    asked, default, expected, load
):
    assert data.balance(load("sst2"), asked, default) == expected
    assert data.balance(load("gsm8k"), asked, default) is False


def test_demos_are_all_the_other_examples_in_an_order_of_their_own():
    few = data.few_shot_set(POOL, 8, 3)
    orders = []
    for i, example in enumerate(few.train):
        demos = data.leave_one_out(few, i)
        assert example not in demos
        assert len(demos) == 7
        assert {demo.query for demo in demos} < {other.query for other in few.train}
        assert demos == data.leave_one_out(few, i)
        orders.append([few.train.index(demo) for demo in demos])
    assert any(order != sorted(order) for order in orders)


def test_replaced_demos_are_shown_and_an_examples_own_is_left_out():
    few = data.few_shot_set(POOL, 4)
    demos = [Example(f"other {i}", " x") for i in range(4)]
    few = replace(few, demos=demos)
    for i in range(4):
        shown = data.leave_one_out(few, i)
        assert sorted(demo.query for demo in shown) == [f"other {k}" for k in range(4) if k != i]
    assert sorted(demo.query for demo in data.icl_demos(few, 0)) == [demo.query for demo in demos]


def test_the_order_of_icls_demos_changes_from_block_to_block():
    few = data.few_shot_set(POOL, 4)
    orders = [data.icl_demos(few, block) for block in range(20)]
    assert orders == [data.icl_demos(few, block) for block in range(20)]
    for order in orders:
        assert sorted(demo.query for demo in order) == sorted(demo.query for demo in few.train)
    assert len({tuple(demo.query for demo in order) for order in orders}) > 10
    other = data.few_shot_set(POOL, 4, number=1)
    assert [few.train.index(demo) for demo in orders[0]] != [
        other.train.index(demo) for demo in data.icl_demos(other, 0)
    ]


def test_a_row_tells_which_data_it_saw(movies, few_shot):
    settings = data.training_settings(movies, few_shot, True)
    assert settings["dataset"] == "movies"
    assert settings["n"] == 4
    assert settings["balanced"] is True
    assert sorted(settings["train_labels"]) == ["negative"] * 2 + ["positive"] * 2
    assert sorted(settings["dev_labels"]) == ["negative", "positive"]
    changed = replace(few_shot, dev=[few_shot.dev[0], replace(few_shot.dev[1], response=" x")])
    others = data.training_settings(movies, changed, True)
    assert others["train_data"] == settings["train_data"]
    assert others["dev_data"] != settings["dev_data"]
    tested = data.test_settings(movies)
    assert tested["test"] == 40
    assert tested != data.test_settings(data.draw_test(movies, 39))


# ---- your own data -------------------------------------------------------------------------------


def own(path, train, test):
    """Write a user's folder; a row that is a text is written as it is."""
    path.mkdir(parents=True, exist_ok=True)
    write_lines(path / "train.jsonl", train)
    write_lines(path / "test.jsonl", test)
    return path


COLOURS = [
    {"query": f"The colour of {thing} is", "response": colour}
    for thing, colour in [
        ("grass", "green"),
        ("snow", "white"),
        ("leaves", "green"),
        ("milk", "white"),
        ("moss", "green"),
        ("salt", "white"),
    ]
]


def test_what_another_task_tests_on_is_never_trained_on(tokenizer, tmp_path, capsys):
    trained = str(own(tmp_path / "trained", COLOURS[:5], COLOURS[5:]))
    tested = str(own(tmp_path / "tested", COLOURS[2:4] + COLOURS[5:], COLOURS[:2]))
    options = data.Options(plain=True)
    training, tests = data.load_with_tests(trained, [trained, tested], tokenizer, options)
    left = [example.query for example in training.pool]
    assert left == [row["query"] for row in COLOURS[2:5]]
    assert tests[0] is training and len(tests[1].test) == 2
    assert "2 training rows are test queries too and are left out" in capsys.readouterr().err
    alike = data.load_alike([trained, tested], tokenizer, options)  # nothing is trained there
    assert [len(task.pool) for task in alike.values()] == [5, 3]
    assert "left out" not in capsys.readouterr().err
    alone, _ = data.load_with_tests(trained, [], tokenizer, options)
    assert len(alone.pool) == 5


def test_a_folder_with_a_benchmarks_name_is_told_how_to_be_named(tokenizer, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        own(tmp_path / "tweets", COLOURS[:4], COLOURS[4:])
        bundled, _ = data.load_with_tests("tweets", [], tokenizer, data.Options(plain=True))
        assert bundled.spec.name == "tweets"
        said = "tweets is the benchmark; write ./tweets for your folder of that name"
        assert capsys.readouterr().err.count(said) == 1
        mine, _ = data.load_with_tests("./tweets", [], tokenizer, data.Options(plain=True))
    assert mine.spec.name == "tweets/" and said not in capsys.readouterr().err


def test_own_rows_with_few_short_responses_are_a_label_task(load, tmp_path, capsys):
    task = load(own(tmp_path, COLOURS[:4], COLOURS[4:]), plain=True)
    assert task.spec.labels == ("green", "white")
    assert task.max_tokens == 1
    assert task.pool[0] == Example("The colour of grass is", " green", 0)
    assert "is a label task: green, white" in capsys.readouterr().err


@pytest.mark.parametrize(
    "query, labels",
    [
        ("Thing {}: rate it from 1 to 5", [1, 2, 3]),
        ("{} Seen in 2019", ["0", "1", "0"]),
        ("Score {}", [10, 20, 10]),
        ("From -1 to 1, {}", [-1, 0, 1]),
    ],
)
def test_a_number_behind_a_query_that_ends_in_a_digit_is_refused(query, labels, load, tmp_path):
    """` 1` and ` 2` are two tokens each, of which the first is the space: words do not work."""
    rows = [{"query": query.format(k), "response": labels[k % 3]} for k in range(12)]
    with pytest.raises(UserError, match="in a digit .* end queries in a colon, or use --labels re"):
        load(own(tmp_path, rows[:9], rows[9:]))
    for row in rows:
        row["query"] += ":"
    assert load(own(tmp_path, rows[:9], rows[9:])).label_texts[-1] == str(max(labels))


def test_own_rows_with_many_responses_are_free_text(load, tmp_path):
    rows = [{"query": f"{k} squared is", "response": f"the number {k * k}"} for k in range(8)]
    task = load(own(tmp_path, rows[:6], rows[6:]))
    assert task.spec.labels == ()
    assert task.label_style is None
    assert task.max_tokens == 200
    assert task.pool[0] == Example("0 squared is", " the number 0")
    assert task.spec.same(task.spec.parse(" The number 4. "), task.spec.parse("the number 4"))


def test_two_folders_of_one_last_name_are_two_tasks(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = ("en/intents", "de/intents", "intents")
    names = [load(own(tmp_path / name, COLOURS[:4], COLOURS[4:])).spec.name for name in folders]
    assert names == ["en/intents/", "de/intents/", "intents/"]
    relative = load("./en/intents").spec.name
    assert relative == load(tmp_path / "en" / "intents").spec.name == "en/intents/"
    monkeypatch.chdir("/")
    english = load(tmp_path / "en" / "intents").spec.name
    assert english != load(tmp_path / "de" / "intents").spec.name


def test_a_folder_is_not_taken_for_the_benchmark_of_its_name(load, tmp_path):
    own(tmp_path / "movies", COLOURS[:4], COLOURS[4:])
    assert load(tmp_path / "movies").spec.name not in tasks.TASKS


def test_repeated_queries_are_left_out_and_counted(load, tmp_path, capsys):
    train = [*COLOURS[:4], COLOURS[1], COLOURS[4], COLOURS[1]]
    task = load(own(tmp_path, train, COLOURS[4:]))
    assert [example.query for example in task.pool] == [row["query"] for row in COLOURS[:4]]
    assert len(task.test) == 2
    assert "3 rows repeat a query and are left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "part, row",
    [
        (0, {**COLOURS[1], "response": "green"}),
        (1, {**COLOURS[0], "response": "white"}),
        (0, {"query": f" {COLOURS[2]['query']}  ", "response": "white"}),
    ],
)
def test_repeated_queries_with_different_responses_are_refused(part, row, load, tmp_path):
    parts = [list(COLOURS[:4]), list(COLOURS[4:])]
    parts[part].append(row)
    message = (
        r"(train|test).jsonl, line \d: the query has the response .* here and .* in "
        r".*train.jsonl, line \d; keep one"
    )
    with pytest.raises(UserError, match=message):
        load(own(tmp_path, *parts))


def test_queries_that_differ_in_case_alone_are_two(load, tmp_path):
    rows = []
    for k in range(4):
        for word in ("US", "us"):
            rows.append({"query": f"{word} {k}:", "response": word})
    assert len(load(own(tmp_path, rows[:6], rows[6:])).pool) == 6


def test_a_folder_whose_queries_are_all_in_the_test_part_is_one_sentence(load, tmp_path):
    with pytest.raises(
        UserError, match="has 0 training examples that are no test queries and 6 test"
    ):
        load(own(tmp_path, COLOURS[:4], COLOURS))


def test_blank_lines_in_a_response_are_closed_up(load, tmp_path):
    rows = []
    for k in range(6):
        rows.append({"query": f"{k}?", "response": f"One {k}.\n\nTwo.\r\n \r\nThree {k}."})
    task = load(own(tmp_path, rows[:4], rows[4:]))
    assert task.pool[0].response == " One 0.\nTwo.\nThree 0."


@pytest.mark.parametrize(
    "rows, message",
    [
        (
            [{"query": "a", "respnse": "b"}],
            r"train.jsonl, line 1: the row has no field 'response' .*it has query, respnse",
        ),
        (
            [COLOURS[0], {"query": "a", "response": ["b"]}],
            r"line 2: the row has no field 'response' of type str",
        ),
        (
            [COLOURS[0], {"query": "a", "response": None}],
            r"line 2: the row has no field 'response' of type str",
        ),
        ([COLOURS[0], {"query": " ", "response": "b"}], r"line 2: the field 'query' is empty"),
        ([COLOURS[0], {"query": "b", "response": " "}], r"line 2: the field 'response' is empty"),
        ([COLOURS[0], "{broken"], r"train.jsonl, line 2: this is not a JSON object"),
        ([COLOURS[0], "[1, 2]"], r"line 2: the row has no field 'query' .*no JSON object"),
        (
            [COLOURS[0], '{"query": "\\ud83d", "response": "x"}'],
            r"line 2: half of a surrogate pair",
        ),
        (
            [COLOURS[0], COLOURS[1], '{"query": "x", "response": "\\udc00y"}'],
            r"line 3: half of a surrogate pair",
        ),
        (['{"query": "x", "\\ud800": "y"}'], r"line 1: half of a surrogate pair"),
        ([], r"train.jsonl holds no rows"),
        (["", ""], r"train.jsonl holds no rows"),
    ],
)
def test_wrong_own_rows_are_named_by_file_and_line(rows, message, load, tmp_path):
    with pytest.raises(UserError, match=message):
        load(own(tmp_path, rows, COLOURS))


def test_a_whole_surrogate_pair_is_a_character(load, tmp_path):
    smile = '{"query": "\\ud83d\\ude00 0", "response": "joy"}'
    tears = {"query": "😢 1", "response": "tears"}
    test = [{"query": "x0", "response": "joy"}, {"query": "x1", "response": "tears"}]
    task = load(own(tmp_path, [smile, tears] * 2, test))
    assert task.pool[0].query == "😀 0"


# ---- CSV -----------------------------------------------------------------------------------------


def csv(path, train, test="query,response\ne,yes\nf,no\n"):
    path.mkdir(parents=True, exist_ok=True)
    (path / "train.csv").write_text(train, encoding="utf-8-sig")
    (path / "test.csv").write_text(test, encoding="utf-8")
    return path


def test_own_rows_can_be_csv(load, tmp_path):
    train = 'query,response\n"a, b",yes\nc,no,,\n"two\nlines",yes\nd,no,\n'
    task = load(csv(tmp_path, train))
    assert [example.query for example in task.pool] == ["a, b", "c", "two\nlines", "d"]
    assert task.spec.labels == ("no", "yes")


@pytest.mark.parametrize(
    "row, line",
    [
        ("The box, crushed, arrived late,shipping", 3),
        ("a,b,c", 3),
        ('"two\nlines",yes,no', 4),
    ],
)
def test_a_csv_row_with_more_fields_than_the_header_is_named_with_its_line(
    row, line, load, tmp_path
):
    message = (
        f"train.csv, line {line}: the row has more fields than in the header; put quotes around"
    )
    with pytest.raises(UserError, match=message):
        load(csv(tmp_path, f"query,response\nx,yes\n{row}\ny,no\n"))


def test_broken_csv_is_named_with_its_line(load, tmp_path):
    with pytest.raises(UserError, match=r"train.csv, line \d: this is not CSV"):
        load(csv(tmp_path, 'query,response\na,b\nc,"d"e\n'))
    with pytest.raises(UserError, match="line 3: the row has no field 'response'"):
        load(csv(tmp_path, "query,response\na,yes\nb\n"))


def test_a_benchmark_as_csv_reads_numbers_and_truth_values_as_such(load, tmp_path):
    csv(tmp_path / "sst2", "idx,sentence,label\n1,7,1\n2,bad,0\n", "sentence,label\nfine,1\n")
    pool = load("sst2", tmp_path).pool
    assert pool == [Example("Text:7\nLabel:", "1", 1), Example("Text:bad\nLabel:", "0", 0)]

    questions = "question,answer\nIs it?,True\nOr not?,false\n"
    csv(tmp_path / "strategyqa", questions, "question,answer\nSo?,TRUE\n")
    assert [example.label for example in load("strategytf", tmp_path).pool] == [1, 0]

    choices = '"{""text"": [""a"", ""b"", ""c"", ""d""], ""label"": [""A"", ""B"", ""C"", ""D""]}"'
    header = "question,choices,answerKey"
    csv(tmp_path / "arc", f"{header}\nWhich?,{choices},B\n", f"{header}\nWhat?,{choices},D\n")
    assert load("arc", tmp_path).pool[0].label == 1

    csv(tmp_path / "sst2", "sentence,label\nx,1.5\n")
    with pytest.raises(UserError, match="line 2: the row has no field 'label' of type int"):
        load("sst2", tmp_path)
