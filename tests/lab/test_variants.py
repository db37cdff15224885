"""pytest tests/lab/test_variants.py: each loss, target and vector against its definition."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import random_prompts, randomise, tiny

import data
import ia2
import lora
from lab import variants
from lab.variants import METHODS, Choices, LabTarget
from support.cli import UserError

LABELS = [11, 12, 13]


# ---- a reference: one prompt at a time, plain hooks ----------------------------------------------


def alone(model, prompt, response, added=None, first=0):
    """A (L, G, d) and logits (G, V) where a response is predicted. `added` (L, d) is added to what
    self-attention puts out, from position `first` on.
    """
    read = []

    def hook(layer):
        def inner(module, inputs, output):
            hidden = output[0].clone()
            if added is not None:
                hidden[:, first:] += added[layer]
            read.append(hidden[0, -len(response) :])
            return (hidden, *output[1:])

        return inner

    layers = model.get_decoder().layers
    handles = [each.self_attn.register_forward_hook(hook(i)) for i, each in enumerate(layers)]
    logits = model(torch.tensor([prompt + response[:-1]])).logits[0, -len(response) :]
    for handle in handles:
        handle.remove()
    return torch.stack(read), logits


@pytest.fixture
def model():
    """A tiny model whose adapter changes something."""
    model = tiny()
    lora.add(model)
    randomise(model)
    return model


def random_targets(responses, seed=0, label_tokens=None):
    """LabTargets with random prompts and activations (3, G, 32) and the responses [(gold, icl)]."""
    generator = torch.Generator().manual_seed(seed)
    teachers = random_prompts([9, 12, 7, 10][: len(responses)], seed)
    targets = []
    for prompt, (gold, icl) in zip(teachers, responses):
        A_icl = torch.randn(3, len(icl), 32, generator=generator)
        label = label_tokens.index(gold[0]) if label_tokens else None
        target = LabTarget(prompt, prompt[-5:], gold, icl, A_icl, label, label_tokens)
        targets.append(target)
    return targets


@pytest.fixture
def texts():
    """Targets with responses of several tokens."""
    return random_targets([([7], [21, 22]), ([8, 9], [23]), ([6, 5, 4], [24, 25, 26])])


@pytest.fixture
def labelled():
    """Targets of a task with three labels, one of which is no one's."""
    responses = [([11], [12]), ([12], [12]), ([11], [40])]
    return random_targets(responses, label_tokens=LABELS)


def close(value, expected):
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


def log_p(model, target, response):
    """log p of each token of a response: a list."""
    logprobs = alone(model, target.student_prompt, response)[1].log_softmax(-1)
    return [logprobs[g, token] for g, token in enumerate(response)]


def ia2_by_hand(model, prompt, response, A_icl):
    A = alone(model, prompt, response)[0]
    return sum(((A[layer] - A_icl[layer]) ** 2).mean() for layer in range(3))


# ---- losses --------------------------------------------------------------------------------------


def test_sft_icl_is_the_cross_entropy_of_the_responses_of_icl(model, texts):
    parts = []
    for target in texts:
        values = log_p(model, target, target.Y_icl)
        parts.append(-sum(values) / len(values))
    close(variants.sft_icl_loss(model, texts), sum(parts) / 3)


def test_kd_is_the_divergence_from_the_teacher_at_the_output_positions(model, texts):
    variants.add_logprobs(model, texts)
    parts = []
    for target in texts:
        with lora.disable(model):
            p = alone(model, target.teacher_prompt, target.Y_icl)[1].softmax(-1)
        q = alone(model, target.student_prompt, target.Y_icl)[1].softmax(-1)
        parts.append((p * (p / q).log()).sum(-1).mean())
    close(variants.kd_loss(model, texts), sum(parts) / 3)


def test_the_joint_loss_is_a_sum_whose_terms_start_equal(model, texts):
    joint = variants.JointLoss(0.7, variants.sft_icl_loss)
    expected = ia2.ia2_loss(model, texts) + 0.7 * variants.sft_icl_loss(model, texts)
    close(joint(model, texts), expected)
    assert joint.__name__ == "ia2+sft_loss"
    lora.reset(model)
    beta = variants.equal_beta(model, variants.sft_icl_loss, texts)
    close(beta * variants.sft_icl_loss(model, texts), ia2.ia2_loss(model, texts))


def test_beta_does_not_explode_where_the_model_gives_the_response_anyway(model, texts):
    def sure(model, batch):
        return torch.tensor(1e-9)

    with lora.disable(model):
        activations = ia2.ia2_loss(model, texts).item()
    assert variants.equal_beta(model, sure, texts) == pytest.approx(activations / 0.1, rel=1e-4)


def test_the_mean_primer_has_one_target_for_all_queries(model, texts):
    dev = random_targets([([7], [31]), ([9], [32, 33])], seed=5)
    variants.add_mean(variants.Examples(texts, texts, dev))
    sums = torch.zeros(3, 32)
    for target in texts:
        G = len(target.Y_icl)
        sums += sum(target.A_icl[:, g] for g in range(G)) / G
    parts = []
    for target in [*texts, *dev]:
        close(target.A_mean[:, 0], sums / 3)
        wanted = (sums / 3)[:, None].expand(3, len(target.Y_icl), 32)
        parts.append(ia2_by_hand(model, target.student_prompt, target.Y_icl, wanted))
    close(variants.mean_loss(model, texts), sum(parts[:3]) / 3)
    close(variants.mean_loss(model, dev), sum(parts[3:]) / 2)


def test_the_rotated_primer_gives_each_query_the_target_of_the_next(model, texts):
    dev = random_targets([([7], [31]), ([9], [32, 33])], seed=5)
    variants.add_rotated(variants.Examples(texts, texts, dev))
    for batch in (texts, dev):
        parts = []
        for i, target in enumerate(batch):
            other = batch[(i + 1) % len(batch)]
            parts.append(ia2_by_hand(model, target.student_prompt, other.Y_icl, other.A_icl))
        close(variants.rotated_loss(model, batch), sum(parts) / len(parts))


def test_a_lone_dev_example_is_rotated_onto_the_first_training_query(texts):
    [dev] = random_targets([([7], [31])], seed=5)
    variants.add_rotated(variants.Examples(texts, texts, [dev]))
    assert dev.rotated is texts[0]


def test_the_format_primer_asks_for_any_label(model, labelled):
    parts = []
    for target in labelled:
        p = alone(model, target.student_prompt, [0])[1][0].softmax(-1)
        parts.append(-(p[11] + p[12] + p[13]).log())
    close(variants.format_loss(model, labelled), sum(parts) / 3)
    moved = [replace(target, gold=[12], label=1, A_icl=None, Y_icl=[0]) for target in labelled]
    close(variants.format_loss(model, moved), variants.format_loss(model, labelled))


def test_balanced_sft_weighs_each_label_that_occurs_the_same(model, labelled):
    task = FakeTask(LABELS)
    examples = [data.Example("q", "r", label) for label in (0, 1, 0)]
    plain = []
    for each in labelled:
        target = ia2.Target(
            each.teacher_prompt, each.student_prompt, each.gold, each.Y_icl, each.A_icl
        )
        plain.append(target)
    targets = variants.with_labels(plain, examples, task)
    assert [target.weight for target in targets] == [0.75, 1.5, 0.75]
    first = [log_p(model, labelled[i], [11])[0] for i in (0, 2)]
    second = log_p(model, labelled[1], [12])[0]
    by_label = (-(first[0] + first[1]) / 2 - second) / 2
    close(variants.sft_balanced_loss(model, targets), by_label)


def test_with_one_example_a_label_balanced_sft_is_sft(model, labelled):
    close(variants.sft_balanced_loss(model, labelled), ia2.sft_loss(model, labelled))


class FakeTask:
    def __init__(self, label_tokens):
        self.label_tokens = label_tokens


def test_smoothed_sft_gives_a_tenth_to_all_labels_alike(model, labelled):
    parts = []
    for target in labelled:
        wanted = {token: 0.1 / 3 for token in LABELS}
        wanted[target.gold[0]] += 0.9
        assert sum(wanted.values()) == pytest.approx(1)
        logprobs = alone(model, target.student_prompt, [0])[1][0].log_softmax(-1)
        parts.append(-sum(q * logprobs[token] for token, q in wanted.items()))
    close(variants.sft_smooth_loss(model, labelled), sum(parts) / 3)


def test_sft_among_labels_is_the_choice_and_a_tenth_of_the_mass(model, labelled):
    parts = []
    for target in labelled:
        p = alone(model, target.student_prompt, [0])[1][0].softmax(-1)
        mass = p[LABELS].sum()
        parts.append(-(p[target.gold[0]] / mass).log() - 0.1 * mass.log())
    close(variants.sft_labels_loss(model, labelled), sum(parts) / 3)


def test_sft_among_labels_with_the_whole_mass_would_be_sft(model, labelled, monkeypatch):
    monkeypatch.setattr(variants, "MASS_WEIGHT", 1)
    close(variants.sft_labels_loss(model, labelled), ia2.sft_loss(model, labelled))


# ---- the table of methods ------------------------------------------------------------------------


def test_the_lab_has_the_methods_of_the_paper_and_a_sentence_for_each(model, texts):
    steering = variants.Steering(torch.zeros(3, 32))
    stages = {stage for method in METHODS.values() for stage in method.path}
    examples = variants.Examples(texts, texts, texts)
    losses = variants.make_losses(model, examples, Choices(), stages, steering)
    assert stages <= set(losses)
    for name, path in ia2.METHODS.items():
        assert tuple(losses[stage] for stage in METHODS[name].path) == path
    for method in METHODS.values():
        assert method.sentence.endswith(".")


def test_methods_that_need_labels_refuse_free_text():
    task = FakeTask([])
    task.spec = FakeTask([])
    task.spec.name = "gsm8k"
    refused = []
    for name in METHODS:
        try:
            variants.check_methods([name], Choices(), task)
        except UserError as error:
            assert "needs a task with labels and gsm8k is free text" in str(error)
            refused.append(name)
    assert refused == [
        "format",
        "flipped-sft",
        "format-sft",
        "sft-balanced",
        "sft-smooth",
        "sft-labels",
        "sft-prior",
    ]
    with pytest.raises(UserError, match="flipped demos have wrong labels and gsm8k is free text"):
        variants.check_methods(["ia2"], Choices(demos="flipped"), task)


@pytest.mark.parametrize("name", ["mean", "rotated-sft"])
def test_one_unlabelled_query_is_no_other_query(name):
    with pytest.raises(UserError, match=f"{name} needs other queries; use --queries 2 or more"):
        variants.check_methods([name], Choices(queries=1), FakeTask([1, 2]))
    variants.check_methods([name, "ia2"], Choices(queries=2), FakeTask([1, 2]))


def test_a_row_tells_the_choices_that_its_method_depends_on():
    choices = Choices(sft_on="icl", beta=2.0, queries=4, steer_at="all")
    unlabelled = {"targets": "unlabelled", "queries": 4}
    assert Choices().settings("ia2+sft") == {}
    assert choices.settings("ia2") == unlabelled
    assert choices.settings("sft-balanced") == {}
    assert choices.settings("sft") == {"sft_on": "icl", **unlabelled}
    assert choices.settings("ia2+sft") == {"beta": 2.0, **unlabelled}, "its SFT is on icl anyway"
    assert choices.settings("steer") == {**unlabelled, "steer_at": "all"}
    gold = Choices(sft_on="gold", queries=4)
    assert gold.settings("sft") == {}, "as it is by default"
    assert gold.settings("format") == unlabelled


# ---- teachers ------------------------------------------------------------------------------------


def test_flipped_demos_have_the_next_label():
    pool = [data.Example(f"q{k}", f" {'abc'[k % 3]}", k % 3) for k in range(12)]
    few_shot = data.few_shot_set(pool, 4)
    texts = [" a", " b", " c"]
    flipped = variants.change_demos(few_shot, "flipped", texts)
    assert flipped.train == few_shot.train
    for demo, example in zip(flipped.demos, few_shot.train):
        assert demo.query == example.query
        assert demo.label == (example.label + 1) % 3
        assert demo.response == texts[demo.label]
    assert flipped.demos[1] not in data.leave_one_out(flipped, 1)
    assert len(data.leave_one_out(flipped, 1)) == 3


def test_a_teacher_can_have_no_demos_its_own_or_foreign_ones():
    pool = [data.Example(f"q{k}", f" {k % 2}", k % 2) for k in range(12)]
    few_shot = data.few_shot_set(pool, 4)
    foreign = [data.Example("other", " 0", 0)]
    assert variants.change_demos(few_shot, "none", [" 0", " 1"]).demos == []
    assert variants.change_demos(few_shot, "own", [" 0", " 1"]) == few_shot
    assert variants.change_demos(few_shot, "foreign", [" 0", " 1"], foreign).demos == foreign


OPTIONS = data.Options(default_labels="words", plain=True)


@pytest.fixture(scope="module")
def stand_in(tokenizer):
    """What `sst2` is where no hub can be reached: the texts of `movies`."""
    task = data.load("movies", tokenizer, OPTIONS)
    source = f"stand-in movies, {task.source}"
    return replace(task, spec=replace(task.spec, name="sst2"), source=source)


def test_foreign_demos_are_never_the_training_or_test_texts(tokenizer, stand_in):
    amazon = data.load("amazon", tokenizer, OPTIONS)
    foreign = variants.foreign_task(stand_in, [stand_in, amazon], tokenizer, OPTIONS)
    assert foreign.spec.name == "nyt"
    assert foreign.label_texts == stand_in.label_texts
    few_shot = data.few_shot_set(stand_in.pool, 4, 1, balanced=True)
    others = data.few_shot_set(foreign.pool, 4, 1, balanced=True)
    assert variants.foreign_demos(foreign, few_shot, True) == others.train
    few = replace(foreign, pool=foreign.pool[:3])
    with pytest.raises(UserError, match="the foreign demos are of nyt: n = 4 needs 4 training"):
        variants.foreign_demos(few, few_shot, False)
    pool = {example.query for example in foreign.pool}
    for task in (stand_in, amazon):
        assert pool.isdisjoint(example.query for example in task.pool + task.test)


def test_where_all_like_tasks_are_tested_on_there_are_no_foreign_demos(tokenizer, stand_in):
    names = ("amazon", "nyt", "tweets")
    tests = [data.load(name, tokenizer, OPTIONS) for name in names]
    with pytest.raises(UserError, match="--demos foreign needs a task with the labels of sst2"):
        variants.foreign_task(stand_in, tests, tokenizer, OPTIONS)


# ---- targets of a real few-shot set --------------------------------------------------------------


@pytest.fixture(scope="module")
def setup(tokenizer, stand_in):
    """A tiny model with the task of the bundled reviews."""
    model = tiny(vocabulary=len(tokenizer))
    lora.add(model)
    return ia2.Setup(model, tokenizer, stand_in, [stand_in], 8, {}, [], None)


@pytest.fixture
def small_set(setup):
    return data.few_shot_set(setup.task.pool, 4, balanced=True)


def test_targets_of_the_lab_are_those_of_the_paper_with_their_labels(setup, small_set):
    examples = variants.make_examples(setup, small_set, Choices(), set())
    targets, dev = ia2.few_shot_targets(setup.model, setup.tokenizer, small_set)
    assert examples.queries is examples.labelled
    for ours, theirs, example in zip(
        examples.labelled + examples.dev, targets + dev, small_set.train + small_set.dev
    ):
        assert ours.gold == theirs.gold == [ours.label_tokens[example.label]]
        assert ours.label == example.label
        assert ours.Y_icl == theirs.Y_icl
        close(ours.A_icl, theirs.A_icl)
        assert ours.A_mean is ours.rotated is ours.flipped is ours.icl_logprobs is None


def test_the_flipped_primer_has_the_targets_of_a_teacher_with_wrong_demos(setup, small_set):
    examples = variants.make_examples(setup, small_set, Choices(), {"flipped"})
    wrong = []
    for example in small_set.train:
        label = 1 - example.label
        response = setup.task.label_texts[label]
        wrong.append(data.Example(example.query, response, label))
    for i, target in enumerate(examples.labelled):
        demos = data.leave_one_out(replace(small_set, demos=wrong), i)
        query = small_set.train[i].query
        prompt = data.prompt_tokens(setup.tokenizer, demos, query)
        with lora.disable(setup.model):
            A_icl, logits = alone(setup.model, prompt, [0])
        assert target.flipped.teacher_prompt == prompt != target.teacher_prompt
        assert target.flipped.Y_icl == [logits[0].argmax()]
        close(target.flipped.A_icl, A_icl)
        assert target.flipped.gold == target.gold, "SFT after it has the true labels"
    batch = examples.labelled
    expected = ia2.ia2_loss(setup.model, [target.flipped for target in batch])
    close(variants.flipped_loss(setup.model, batch), expected)


def test_unlabelled_queries_are_new_ones_and_their_teacher_sees_the_whole_set(setup, small_set):
    examples = variants.make_examples(setup, small_set, Choices(queries=3), {"mean", "flipped"})
    assert len(examples.labelled) == 4 and len(examples.queries) == 3 and len(examples.dev) == 2
    used = {example.query for example in small_set.train + small_set.dev}
    pool = {example.query: example for example in setup.task.pool}
    for target in examples.queries:
        query = setup.tokenizer.decode(target.student_prompt)
        assert query in pool and query not in used
        prompt = setup.tokenizer.decode(target.teacher_prompt)
        for demo in small_set.train:
            assert demo.query + demo.response in prompt
        assert target.gold == [] and target.label is None, "no true response is known"
        for demo in target.flipped.teacher_prompt, target.teacher_prompt:
            assert query in setup.tokenizer.decode(demo)
    close(examples.dev[0].A_mean, sum(target.A_icl for target in examples.queries) / 3)


def test_unlabelled_queries_are_drawn_by_seed_and_set(setup):
    pool = setup.task.pool
    sets = [data.few_shot_set(pool, 4, number) for number in (0, 1)]
    draws = [variants.draw_unlabelled(pool, few_shot, 16) for few_shot in sets]
    assert draws[0] != draws[1]
    assert draws[0] == variants.draw_unlabelled(pool, sets[0], 16)
    assert variants.draw_unlabelled(pool, sets[0], 4) == draws[0][:4]
    assert variants.draw_unlabelled(pool, data.few_shot_set(pool, 4, seed=1), 16) != draws[0]
    with pytest.raises(UserError, match="--queries 9 is more than the 6 examples that the pool"):
        variants.draw_unlabelled(pool[:12], data.few_shot_set(pool[:12], 4), 9)


# ---- steering ------------------------------------------------------------------------------------


def steering_by_hand(model, tokenizer, few_shot):
    """mean_i (A_ICL - A) at the query's last token, (L, d), with plain hooks."""
    shifts = []
    for i, example in enumerate(few_shot.train):
        demos = data.leave_one_out(few_shot, i)
        teacher = data.prompt_tokens(tokenizer, demos, example.query)
        student = data.prompt_tokens(tokenizer, [], example.query)
        A_icl = alone(model, teacher, [0])[0]
        A = alone(model, student, [0])[0]
        shifts.append((A_icl - A)[:, 0])
    return sum(shifts) / len(shifts)


def test_steering_is_the_mean_shift_added_at_the_last_token(setup, small_set):
    model, tokenizer = setup.model, setup.tokenizer
    examples = variants.make_examples(setup, small_set, Choices(), set())
    randomise(model)  # steering is of the base model, whatever the adapter
    steering = variants.make_steering(model, examples.labelled)
    with lora.disable(model):
        vector = steering_by_hand(model, tokenizer, small_set)
        close(steering.vector, vector)
        test = data.draw_test(setup.task, 5)
        with steering.in_place(model) as edit:
            evaluation = ia2.evaluate(model, tokenizer, test, edit=edit)
        for i, example in enumerate(test.test):
            prompt = data.prompt_tokens(tokenizer, [], example.query)
            A, logits = alone(model, prompt, [0], vector, len(prompt) - 1)
            logprobs = logits[0].log_softmax(-1)
            close(evaluation.activations[i], A)
            close(evaluation.label_answers.label_logprobs[i], logprobs[test.label_tokens])
            assert evaluation.answers[i] == logprobs.argmax()
    lora.reset(model)


def test_steering_of_free_text_acts_at_all_output_positions(tokenizer, place):
    model = tiny(vocabulary=len(tokenizer))
    lora.add(model)
    options = data.Options(data_dir=str(place / "bench"), max_tokens=4)
    task = data.draw_test(data.load("gsm8k", tokenizer, options), 3)
    few_shot = data.few_shot_set(task.pool, 2)
    targets, _ = ia2.few_shot_targets(model, tokenizer, few_shot, 4)
    shifts = []
    for target in targets:
        A_icl = alone(model, target.teacher_prompt, target.Y_icl)[0]
        A = alone(model, target.student_prompt, target.Y_icl)[0]
        shifts.append((A_icl - A).mean(dim=1))
    steering = variants.make_steering(model, targets)
    close(steering.vector, (shifts[0] + shifts[1]) / 2)
    with steering.in_place(model) as edit:
        evaluation = ia2.evaluate(model, tokenizer, task, edit=edit)
    for example, response in zip(task.test, evaluation.responses):
        prompt = data.prompt_tokens(tokenizer, [], example.query)
        expected = []
        while len(expected) < len(response):
            logits = alone(model, prompt, [*expected, 0], steering.vector, len(prompt) - 1)[1]
            expected.append(logits[-1].argmax().item())
        assert response == expected


def test_steering_everywhere_is_a_bias_of_the_output_projection(setup, small_set):
    model = setup.model
    examples = variants.make_examples(setup, small_set, Choices(), set())
    steering = variants.make_steering(model, examples.labelled, at="all")
    [prompt] = random_prompts([9])
    merged = tiny(vocabulary=len(setup.tokenizer))
    for layer, bias in zip(merged.model.layers, steering.vector):
        layer.self_attn.o_proj.bias = torch.nn.Parameter(bias)
    expected = merged(torch.tensor([prompt])).logits[0, -1]
    with steering.in_place(model) as edit:
        assert edit is None
        [reading] = ia2.forward(model, [prompt], edit=edit)
    close(reading.logits[0], expected)
    [unsteered] = ia2.forward(model, [prompt])
    only_here = replace(steering, at="output")
    with only_here.in_place(model) as edit:
        [other] = ia2.forward(model, [prompt], edit=edit)
    assert (other.logits[0] - expected).abs().max() > 1e-3, "the query's own tokens move too"
    assert (unsteered.logits[0] - expected).abs().max() > 1e-3


def test_an_error_inside_leaves_no_hook_behind(model):
    steering = variants.Steering(torch.ones(3, 32), at="all")
    [before] = ia2.forward(model, [[5, 6, 7]])
    with pytest.raises(RuntimeError), steering.in_place(model):
        raise RuntimeError
    [after] = ia2.forward(model, [[5, 6, 7]])
    assert torch.equal(before.logits, after.logits)


@pytest.mark.parametrize("at", ["output", "all"])
def test_sft_of_a_steered_model_keeps_the_vector_in_place(model, texts, at):
    vector = torch.randn(3, 32, generator=torch.Generator().manual_seed(3))
    steering = variants.Steering(vector, at)
    loss = variants.steered_loss(steering)
    with steering.in_place(model):
        value = loss(model, texts)
    value.backward()
    trained = {name: weight.grad.clone() for name, weight in lora.weights(model).items()}
    model.zero_grad()
    parts = []
    for target in texts:
        first = len(target.student_prompt) - 1 if at == "output" else 0
        logits = alone(model, target.student_prompt, target.gold, vector, first)[1]
        gold = torch.tensor(target.gold)
        parts.append(torch.nn.functional.cross_entropy(logits, gold))
    expected = sum(parts) / 3
    close(value, expected)
    expected.backward()
    for name, weight in lora.weights(model).items():
        close(trained[name], weight.grad)


# ---- the random adapter --------------------------------------------------------------------------


def test_the_random_adapter_has_the_norms_of_the_trained_one_in_each_module(model):
    trained = lora.state(model)
    drawn = variants.random_adapter(trained, seed=3)
    assert drawn.keys() == trained.keys()
    for name, weight in trained.items():
        assert drawn[name].shape == weight.shape
        assert drawn[name].norm().item() == pytest.approx(weight.norm().item(), rel=1e-5)
        cosine = (drawn[name] * weight).sum() / weight.norm() ** 2
        assert abs(cosine.item()) < 0.3
    lora.reset(model, seed=3)  # training starts from other numbers of the same seed
    for name, weight in lora.state(model).items():
        if weight.norm() > 0:
            assert abs(F.cosine_similarity(drawn[name].flatten(), weight.flatten(), dim=0)) < 0.25
    again = variants.random_adapter(trained, seed=3)
    other = variants.random_adapter(trained, seed=4)
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    assert not any(torch.equal(drawn[name], other[name]) for name in drawn)


# ---- prior correction ----------------------------------------------------------------------------


def test_the_content_free_query_is_worded_like_the_others(setup):
    prompt = setup.tokenizer("Review: N/A\nSentiment:").input_ids
    expected = alone(setup.model, prompt, [0])[1][0].log_softmax(-1)[setup.task.label_tokens]
    close(variants.content_free_logprobs(setup.model, setup.tokenizer, setup.task), expected)


def test_the_prior_is_taken_off_each_label(setup):
    test = data.draw_test(setup.task, 8)
    evaluation = ia2.evaluate(setup.model, setup.tokenizer, test)
    answers = evaluation.label_answers
    token = test.label_tokens[0]
    answers.tokens[:4] = token  # four queries are answered with the first label
    prior = torch.tensor([-0.1, -4.0])
    corrected = variants.correct_prior(evaluation, prior)
    assert corrected.activations is evaluation.activations
    for i in range(8):
        p = answers.label_logprobs[i].double().exp()
        q = p / prior.double().exp()
        q = q / q.sum() * p.sum()
        close(corrected.label_answers.label_logprobs[i].exp().double(), q)
        best = q.argmax().item()
        if i < 4:
            assert corrected.answers[i] == test.label_tokens[best]
            assert corrected.confidence[i] == pytest.approx(q[best].item(), rel=1e-4)
        else:
            assert corrected.answers[i] == answers.tokens[i]
        assert corrected.scores["outcomes"][i][1] == best
    assert corrected.scores["label_mass"] == pytest.approx(evaluation.scores["label_mass"])


def test_a_prior_without_a_preference_changes_nothing(setup):
    evaluation = ia2.evaluate(setup.model, setup.tokenizer, data.draw_test(setup.task, 8))
    same = variants.correct_prior(evaluation, torch.tensor([-3.0, -3.0]))
    assert same.answers == evaluation.answers
    assert same.scores["nll"] == pytest.approx(evaluation.scores["nll"], rel=1e-5)
