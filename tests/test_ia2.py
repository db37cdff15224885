"""pytest tests/test_ia2.py: passes, targets, losses and training, each against a computation
that is written out.
"""

import math
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import FAMILIES, alone, joined, random_prompts, randomise, tiny

import data
import ia2
import lora
from engine import running
from support.cli import UserError

# ---- 1. forward ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_padded_batch_gives_what_each_example_gives_alone(family):
    """Prompts longer than the sliding windows of 8, alone and behind demos; an adapter is on."""
    model = tiny(family)
    lora.add(model)
    randomise(model, 0.3)
    prompts = random_prompts([5, 30, 12])
    responses = random_prompts([3, 1, 6], seed=1)
    [demos] = random_prompts([25], seed=2)
    for before in ([], demos):
        prefix, rests = None, prompts
        if before:
            prefix, rests = running.share_prefix(model, [before + prompt for prompt in prompts])
        readings = ia2.forward(model, rests, responses, prefix)
        for prompt, response, reading in zip(prompts, responses, readings):
            A, logits = alone(model, before + prompt + response[:-1], len(response))
            torch.testing.assert_close(reading.activations, A, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(reading.logits, logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_without_responses_the_next_token_is_predicted(tiny_model):
    prompts = random_prompts([5, 30, 12])
    for prompt, reading in zip(prompts, ia2.forward(tiny_model, prompts)):
        A, logits = alone(tiny_model, prompt, 1)
        torch.testing.assert_close(reading.activations, A, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(reading.logits, logits, atol=1e-4, rtol=1e-4)


def test_hooks_are_gone_also_after_an_error(tiny_model):
    with pytest.raises(RuntimeError), ia2.read_attention(tiny_model, [0], [0]):
        raise RuntimeError
    ia2.forward(tiny_model, [[5, 6]], [[7]], edit=lambda layer, outputs: outputs)
    modules = list(tiny_model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


@torch.no_grad()
def test_an_edit_changes_the_pass_at_the_output_positions_only(tiny_model):
    """Adding a vector to every layer's output is what a hook that adds it there does."""
    shift = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    prompts = random_prompts([7, 12])
    responses = random_prompts([3, 2], seed=1)
    readings = ia2.forward(
        tiny_model, prompts, responses, edit=lambda layer, outputs: outputs + shift[layer]
    )
    for prompt, response, reading in zip(prompts, responses, readings):
        handles = []
        size = len(response)
        for number, layer in enumerate(tiny_model.get_decoder().layers):

            def add(module, inputs, output, number=number, size=size):
                output[0][:, -size:] += shift[number]

            handles.append(layer.self_attn.register_forward_hook(add))
        A, logits = alone(tiny_model, prompt + response[:-1], len(response))
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(reading.activations, A, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(reading.logits, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "config, kind",
    [
        (
            transformers.Phi3Config(
                vocab_size=50,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                pad_token_id=0,
            ),
            transformers.Phi3ForCausalLM,
        ),
        (
            transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50),
            transformers.GPT2LMHeadModel,
        ),
    ],
)
def test_a_model_without_projections_of_its_own_is_one_sentence(config, kind):
    message = "has no q_proj, k_proj, o_proj of its own in every layer; use a"
    with pytest.raises(lora.LoRAError, match=message):
        lora.add(kind(config))


def test_a_prompt_longer_than_the_context_is_refused(tokenizer):
    example = data.Example("word " * 20, " yes", 0)
    short = tiny("Llama", vocabulary=49152, max_position_embeddings=16)
    with pytest.raises(UserError, match="more than the model's context of 16; use a smaller --n"):
        ia2.collect_target(short, tokenizer, example, [])
    window = tiny("Mistral", vocabulary=49152, sliding_window=8)
    assert ia2.collect_target(window, tokenizer, example, []).A_icl.shape == (3, 1, 32)


# ---- 2. targets ----------------------------------------------------------------------------------


@torch.no_grad()
def test_targets_equal_the_written_out_computation(bundled, tokenizer, few_shot):
    """Four training and two dev examples; the adapter, which is on, must not show in them."""
    randomise(bundled)
    train, dev = ia2.few_shot_targets(bundled, tokenizer, few_shot)
    assert (len(train), len(dev)) == (4, 2)
    with lora.disable(bundled):
        for i, (example, target) in enumerate(zip(few_shot.train + few_shot.dev, train + dev)):
            demos = few_shot.train
            if i < 4:
                demos = few_shot.train[:i] + few_shot.train[i + 1 :]
                random.Random(f"demos-0-0-{i}").shuffle(demos)
            prompt = tokenizer(joined(demos, example.query)).input_ids
            A, logits = alone(bundled, prompt, 1)
            assert target.teacher_prompt == prompt
            assert target.student_prompt == tokenizer(example.query).input_ids
            assert target.Y_icl == [logits[0].argmax().item()]
            assert target.gold == tokenizer(example.response).input_ids[:1]
            assert target.A_icl.shape == (30, 1, 576)
            torch.testing.assert_close(target.A_icl, A, atol=1e-4, rtol=1e-4)


def test_a_labels_target_is_one_pass_over_the_prompt(tiny_model, tokenizer, few_shot):
    model = tiny(vocabulary=49152)
    shapes = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    target = ia2.collect_target(model, tokenizer, few_shot.train[0], few_shot.train[1:])
    assert shapes == [(1, len(target.teacher_prompt))]


@torch.no_grad()
def test_free_text_targets_equal_one_full_pass_a_token(plain_bundled, tokenizer):
    """G = 10 tokens; a blank line among them does not end a target; gold has the end token."""
    examples = [
        data.Example("Question:What is two plus two?\nAnswer:", " Two and two is four.\n#### 4"),
        data.Example("Question:What is one plus five?\nAnswer:", " One and five is six.\n#### 6"),
    ]
    target = ia2.collect_target(plain_bundled, tokenizer, examples[0], examples[1:], 10)
    prompt = tokenizer(joined(examples[1:], examples[0].query)).input_ids
    response = []
    while len(response) < 10 and response[-1:] != [tokenizer.eos_token_id]:
        A, logits = alone(plain_bundled, prompt + response, len(response) + 1)
        response.append(logits[-1].argmax().item())
    assert target.Y_icl == response and target.A_icl.shape == (30, len(response), 576)
    torch.testing.assert_close(target.A_icl, A, atol=1e-3, rtol=1e-3)
    gold = [*tokenizer(examples[0].response).input_ids, tokenizer.eos_token_id]
    assert target.gold == gold[:10]


@pytest.mark.parametrize("max_tokens, cut", [(1, 3), (4, 3), (7, 1), (40, 0)])
def test_responses_that_do_not_fit_are_counted(max_tokens, cut, tokenizer, capsys):
    responses = (" It is so.", " It is 1.", " It is 2 and more, and more.")
    texts = [data.Example("Question:?\nAnswer:", response) for response in responses]
    few_shot = data.FewShotSet(texts[:2], texts[2:], texts[:2], 0, 0)
    model = tiny(vocabulary=49152)
    ia2.few_shot_targets(model, tokenizer, few_shot, max_tokens)
    expected = (
        f"{cut} of 3 responses are cut to {max_tokens} tokens (--max-tokens)\n" if cut else ""
    )
    assert capsys.readouterr().err == expected


# ---- 3. losses -----------------------------------------------------------------------------------


def random_targets(model, shapes, seed=0):
    """Targets with random tokens and activations; `shapes` are (query, gold, icl) lengths."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    targets = []
    for i, (query, gold, icl) in enumerate(shapes):
        tokens = random_prompts([query, gold, icl], seed=100 * seed + i)
        A = torch.randn(config.num_hidden_layers, icl, config.hidden_size, generator=generator)
        targets.append(ia2.Target(tokens[0], *tokens, A))
    return targets


def test_losses_equal_loops_over_examples_layers_and_tokens(tiny_model):
    lora.add(tiny_model)
    randomise(tiny_model)
    targets = random_targets(tiny_model, [(9, 2, 4), (6, 1, 1), (12, 5, 3)])
    mse = cross = 0.0
    for target in targets:
        tokens = target.student_prompt + target.Y_icl[:-1]
        A, _ = alone(tiny_model, tokens, len(target.Y_icl))
        for layer in range(3):
            squares = []
            for g in range(len(target.Y_icl)):
                for k in range(32):
                    squares.append((A[layer, g, k] - target.A_icl[layer, g, k]).item() ** 2)
            mse += sum(squares) / len(squares) / 3
        tokens = target.student_prompt + target.gold[:-1]
        _, logits = alone(tiny_model, tokens, len(target.gold))
        for g, token in enumerate(target.gold):
            cross -= math.log(logits[g].softmax(-1)[token].item()) / len(target.gold) / 3
    assert ia2.ia2_loss(tiny_model, targets).item() == pytest.approx(mse, rel=1e-5)
    assert ia2.sft_loss(tiny_model, targets).item() == pytest.approx(cross, rel=1e-5)
    mean = ia2.average_loss(tiny_model, ia2.ia2_loss, targets, batch_size=2)
    assert mean == pytest.approx(mse, rel=1e-5)


def test_the_loss_is_the_authors_formula_on_a_set_given_by_hand(bundled, tokenizer):
    """F.mse_loss(A, A_icl) * L, averaged over the examples, for the untrained adapter."""
    rows = [
        ("a gorgeous , witty , seductive movie", 1),
        ("lacks any real surprise", 0),
        ("it moves with grace", 1),
        ("unbearably dull from start to end", 0),
    ]
    shots = [data.Example(f"Text:{text}\nLabel:", f"{label}", label) for text, label in rows]
    few_shot = data.FewShotSet(shots, shots[:2], shots, 0, 0)
    targets, _ = ia2.few_shot_targets(bundled, tokenizer, few_shot)
    parts = []
    with torch.no_grad():
        for target in targets:
            A, _ = alone(bundled, target.student_prompt, 1)
            parts.append(F.mse_loss(A, target.A_icl) * 30)
        expected = torch.stack(parts).mean().item()
        assert ia2.ia2_loss(bundled, targets).item() == pytest.approx(expected, rel=1e-6)


def test_the_ia2_loss_is_zero_without_demos(tiny_model):
    lora.add(tiny_model)
    with torch.no_grad():
        A, _ = alone(tiny_model, [5, 6, 7], 1)
    target = ia2.Target([5, 6, 7], [5, 6, 7], [8], [8], A)
    assert ia2.ia2_loss(tiny_model, [target]).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("loss", [ia2.ia2_loss, ia2.sft_loss])
def test_gradients_are_those_of_finite_differences(loss, tiny_model):
    lora.add(tiny_model)
    randomise(tiny_model)
    targets = random_targets(tiny_model, [(6, 2, 3)])
    weight = list(lora.weights(tiny_model).values())[1]
    loss(tiny_model, targets).backward()
    for i, j in ((0, 0), (3, 2)):
        values = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                weight[i, j] += step
                values.append(loss(tiny_model, targets).item())
                weight[i, j] -= step
        slope = (values[0] - values[1]) / 2e-2
        assert weight.grad[i, j].item() == pytest.approx(slope, rel=5e-2, abs=2e-3)


# ---- 4. training ---------------------------------------------------------------------------------


def written_out(model, targets, dev, recipe, epochs):
    """Adam by its formula over batches of four; [(step, dev loss)] and the adapters at these."""
    rng = random.Random(f"batches-{recipe.seed}-ia2")
    moments, readings, adapters = {}, [], []
    step = 0
    for _ in range(epochs):
        order = rng.sample(range(len(targets)), len(targets))
        for start in range(0, len(order), 4):
            step += 1
            model.zero_grad()
            batch = [targets[i] for i in order[start : start + 4]]
            ia2.ia2_loss(model, batch).backward()
            with torch.no_grad():
                for name, weight in lora.weights(model).items():
                    m, v = moments.get(name, (0, 0))
                    m = 0.9 * m + 0.1 * weight.grad
                    v = 0.999 * v + 0.001 * weight.grad**2
                    moments[name] = m, v
                    size = m / (1 - 0.9**step)
                    scale = (v / (1 - 0.999**step)).sqrt() + 1e-8
                    weight -= recipe.lr * size / scale
            last_of_epoch = start + 4 >= len(order)
            if step % 2 == 0 or last_of_epoch:
                with torch.no_grad():
                    readings.append((step, ia2.ia2_loss(model, dev).item()))
                adapters.append(lora.state(model))
    return readings, adapters


@pytest.mark.parametrize("keep", ["best", "last"])
def test_training_equals_a_written_out_loop(keep, tiny_model):
    """Five examples are two steps an epoch; nine are three, so that epochs end at odd steps."""
    for shapes in ([(9, 2, 4), (6, 1, 1), (7, 2, 2), (8, 1, 3), (5, 3, 2)], [(6, 1, 2)] * 9):
        model = tiny()
        lora.add(model)
        start = lora.state(model)
        targets = random_targets(model, shapes)
        dev = random_targets(model, [(7, 2, 2)], 1)
        recipe = ia2.Recipe(lr=1e-2, epochs=3, seed="7-1", keep=keep)
        stage = ia2.train(model, ia2.ia2_loss, targets, dev, recipe)
        trained = lora.state(model)
        lora.load_state(model, start)
        readings, adapters = written_out(model, targets, dev, recipe, epochs=3)
        found = [(step, dev_loss) for step, _, dev_loss in stage.history]
        assert found == [(step, pytest.approx(loss, rel=1e-4)) for step, loss in readings]
        best = min(range(len(readings)), key=lambda i: readings[i][1])
        kept = best if keep == "best" else len(readings) - 1
        assert stage.kept_step == readings[kept][0] and stage.steps == readings[-1][0]
        assert stage.dev_loss == pytest.approx(readings[kept][1], rel=1e-4)
        for name, weight in adapters[kept].items():
            torch.testing.assert_close(trained[name], weight, atol=1e-4, rtol=1e-3)


def scripted(values, states):
    """A loss that trains as IA2 does and reads the given dev losses, noting the adapters."""

    def loss(model, batch):
        if torch.is_grad_enabled():
            return ia2.ia2_loss(model, batch)
        states.append(lora.state(model))
        return torch.tensor(next(values))

    return loss


def test_early_stopping_returns_to_the_best_adapter(tiny_model):
    """The dev loss falls for three readings and then not for five; an epoch is a step here, so each
    step is read.
    """
    lora.add(tiny_model)
    targets = random_targets(tiny_model, [(6, 1, 1)])
    states = []
    loss = scripted(iter([4.0, 3.0, 2.0, 2.5, 2.5, 2.0, 2.5, 2.5]), states)
    stage = ia2.train(tiny_model, loss, targets, targets, ia2.Recipe(lr=1e-2))
    assert (stage.steps, stage.kept_step, stage.dev_loss) == (8, 3, 2.0)
    for name, weight in lora.state(tiny_model).items():
        assert torch.equal(weight, states[2][name])


def test_a_stage_that_never_gets_better_keeps_its_first_reading_and_not_its_start(tiny_model):
    lora.add(tiny_model)
    start = lora.state(tiny_model)
    targets = random_targets(tiny_model, [(6, 1, 1)])
    states = []
    loss = scripted(iter([1.0] * 6), states)
    stage = ia2.train(tiny_model, loss, targets, targets, ia2.Recipe(lr=1e-2))
    assert (stage.steps, stage.kept_step, stage.dev_loss) == (6, 1, 1.0)
    state = lora.state(tiny_model)
    assert all(torch.equal(weight, states[0][name]) for name, weight in state.items())
    assert any(not torch.equal(weight, start[name]) for name, weight in state.items())


def test_a_loss_that_is_not_finite_is_one_sentence(tiny_model):
    lora.add(tiny_model)
    targets = random_targets(tiny_model, [(6, 1, 1)])
    message = "the ia2 loss is .* training has diverged: use a smaller --lr"
    with pytest.raises(UserError, match=message):
        ia2.train(tiny_model, ia2.ia2_loss, targets, targets, ia2.Recipe(lr=1e30))


def test_paths_train_what_they_share_once_and_start_where_the_path_before_ended(tiny_model):
    lora.add(tiny_model)
    targets = random_targets(tiny_model, [(6, 1, 1), (5, 1, 1)])
    recipe = ia2.Recipe(lr=1e-2, epochs=2)
    start = lora.state(tiny_model)
    trained = {(): ia2.Trained(start, [])}
    stages = {}
    for method, path in ia2.METHODS.items():
        stages[method] = ia2.follow(tiny_model, path, targets, targets, recipe, trained)
    assert [stage.name for stage in stages["ia2-sft"]] == ["ia2", "sft"]
    assert stages["ia2-sft"][0] is stages["ia2"][0], "IA2 is trained once"
    by_hand = tiny()
    lora.add(by_hand)
    lora.load_state(by_hand, start)
    ia2.train(by_hand, ia2.ia2_loss, targets, targets, recipe)
    ia2.train(by_hand, ia2.sft_loss, targets, targets, recipe)
    if type(by_hand) is type(tiny_model):
        for name, weight in lora.state(by_hand).items():
            torch.testing.assert_close(trained[ia2.METHODS["ia2-sft"]].adapter[name], weight)


def test_ia2_moves_the_activations_toward_icl_and_sft_fits_its_answers(
    bundled, tokenizer, few_shot, movies
):
    test = replace(movies, test=movies.test[:4])
    with lora.disable(bundled):
        icl = ia2.evaluate(bundled, tokenizer, test, few_shot)
        base = ia2.evaluate(bundled, tokenizer, test, icl=icl)
    targets, dev = ia2.few_shot_targets(bundled, tokenizer, few_shot)
    recipe = ia2.Recipe(lr=3e-3, epochs=5)
    ia2.train(bundled, ia2.ia2_loss, targets, dev, recipe)
    after = ia2.evaluate(bundled, tokenizer, test, icl=icl)
    assert ia2.compare(after, icl)["asim"] > ia2.compare(base, icl)["asim"] + 0.05
    assert ia2.compare(icl, icl)["asim"] == pytest.approx(1)
    lora.reset(bundled)
    recipe = ia2.Recipe(lr=8e-3, epochs=4)
    stage = ia2.train(bundled, ia2.sft_loss, targets, targets[:2], recipe)
    own = ia2.evaluate(bundled, tokenizer, replace(test, test=few_shot.train))
    assert own.scores["accuracy"] == 1 and stage.dev_loss < -math.log(0.9)
