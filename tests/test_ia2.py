"""pytest tests/test_ia2.py: targets, losses, training and evaluation against written-out versions."""
import copy
import math
from dataclasses import replace

import pytest
import torch
from conftest import randomise, tiny

import data
import ia2
import lora
import model as base
from fetch import UserError
from tasks import TASKS


def plain_pass(model, tokens, outputs):
    """(attention outputs (L, G, d), logits (G, V)) of one example alone, straight through transformers."""
    found, handles = [], [layer.self_attn.register_forward_hook(lambda m, a, out: found.append(out[0][0, -outputs:]))
                          for layer in model.get_decoder().layers]
    logits = model(torch.tensor([tokens], device=model.device), use_cache=False).logits[0, -outputs:]
    for handle in handles:
        handle.remove()
    return torch.stack(found), logits


def random_targets(model, sizes, seed=0):
    """Targets with random tokens and activations: (query length, G of the ICL response, G of the gold response)."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda count: tuple(torch.randint(3, 5000, (count,), generator=generator).tolist())
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    return [ia2.Target(draw(query), draw(icl), torch.randn(layers, icl, width, generator=generator),
                       torch.randn(icl, width, generator=generator), draw(gold)) for query, icl, gold in sizes]


# ---- targets --------------------------------------------------------------------------------------------------------


def test_targets_are_the_icl_run_of_the_base_model(bundled, tokenizer, few_shot, targets):
    """The third training example by hand: its demos as text, one pass, hooks on every layer."""
    demos = data.leave_one_out(few_shot, 2)
    assert len(demos) == 3 and few_shot.train[2] not in demos
    text = "\n\n".join([demo.query + demo.response for demo in demos] + [few_shot.train[2].query])
    with torch.no_grad():
        activations, logits = plain_pass(bundled, tokenizer(text).input_ids, 1)
    target = targets[0][2]
    assert target.icl == (logits[0].argmax().item(),)
    assert target.activations.shape == (30, 1, 576)
    torch.testing.assert_close(target.activations, activations, atol=1e-3, rtol=1e-3)
    assert target.query == tuple(tokenizer(few_shot.train[2].query).input_ids)
    assert tokenizer.decode(target.gold) == few_shot.train[2].response


def test_dev_targets_have_all_training_examples_as_demos(bundled, tokenizer, few_shot, targets):
    text = "\n\n".join([demo.query + demo.response for demo in few_shot.train] + [few_shot.dev[1].query])
    with torch.no_grad():
        activations, _ = plain_pass(bundled, tokenizer(text).input_ids, 1)
    torch.testing.assert_close(targets[1][1].activations, activations, atol=1e-3, rtol=1e-3)


def test_multi_token_targets_equal_one_full_forward_per_token(bundled, tokenizer):
    examples = [data.Example("Question:What is two plus two?\nAnswer:", " Two and two is four.\n#### 4"),
                data.Example("Question:What is one plus five?\nAnswer:", " One and five is six.\n#### 6"),
                data.Example("Question:Tom has 3 pens and buys 4. How many has he?\nAnswer:", " 3 + 4 = 7\n#### 7")]
    demos = [examples[1:], examples[:1], examples[:2]]
    found = ia2.collect_targets(bundled, tokenizer, examples, demos, max_tokens=10)
    for example, before, target in zip(examples, demos, found):
        text = "\n\n".join([demo.query + demo.response for demo in before] + [example.query])
        prompt, response = tokenizer(text).input_ids, []
        with torch.no_grad():
            while len(response) < 10 and response[-1:] != [tokenizer.eos_token_id]:
                activations, logits = plain_pass(bundled, prompt + response, len(response) + 1)
                response.append(logits[-1].argmax().item())
        assert list(target.icl) == response
        assert target.activations.shape == (30, len(response), 576)
        torch.testing.assert_close(target.activations, activations, atol=1e-3, rtol=1e-3)
        gold = tokenizer(example.response).input_ids + [tokenizer.eos_token_id]
        assert list(target.gold) == gold[:10]


def test_a_prompt_longer_than_the_context_is_refused(tokenizer):
    model = tiny("llama", vocabulary=49152, max_position_embeddings=16)
    with pytest.raises(UserError, match="more than the model's context of 16"):
        ia2.prompt_tokens(model, tokenizer, [], "word " * 20)


# ---- losses ---------------------------------------------------------------------------------------------------------


def test_the_ia2_loss_is_a_sum_over_layers_of_means_over_tokens_and_features(bundled, targets):
    target = targets[0][0]
    with torch.no_grad():
        activations, _ = plain_pass(bundled, list(target.query), 1)
    total, (layers, places, width) = 0.0, activations.shape
    first, second = activations.tolist(), target.activations.tolist()
    for layer in range(layers):
        part = 0.0
        for place in range(places):
            for feature in range(width):
                part += (first[layer][place][feature] - second[layer][place][feature]) ** 2
        total += part / (places * width)
    assert ia2.ia2_loss(activations, target.activations).item() == pytest.approx(total, rel=1e-5)
    run = ia2.Run(0, [target], [], 1e-3)
    assert ia2.losses(bundled, ia2.stage("ia2"), [(run, [target])])[0] == pytest.approx(total, rel=1e-4)


def test_the_ia2_loss_is_zero_without_demos(bundled, tokenizer, few_shot):
    found = ia2.collect_targets(bundled, tokenizer, few_shot.train, [[]] * 4)
    run = ia2.Run(0, found, [], 1e-3)
    assert ia2.losses(bundled, ia2.stage("ia2"), [(run, found)])[0] == pytest.approx(0, abs=1e-6)


def test_losses_by_hand():
    logits, teacher = torch.randn(3, 7), torch.randn(3, 7)
    response, p, q = [1, 6, 0], logits.softmax(-1).tolist(), teacher.softmax(-1).tolist()
    cross = sum(-math.log(p[g][token]) for g, token in enumerate(response)) / 3
    assert ia2.sft_loss(logits, torch.tensor(response)).item() == pytest.approx(cross, rel=1e-5)
    divergence = sum(q[g][v] * math.log(q[g][v] / p[g][v]) for g in range(3) for v in range(7)) / 3
    assert ia2.kd_loss(logits, teacher).item() == pytest.approx(divergence, rel=1e-4)
    assert ia2.kd_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def written_out_loss(model, name, targets, beta):
    """Each stage's loss as its definition says, one example at a time, straight through transformers."""
    total = 0.0
    for target in targets:
        on_icl = plain_pass(model, [*target.query, *target.icl[:-1]], len(target.icl))
        on_gold = plain_pass(model, [*target.query, *target.gold[:-1]], len(target.gold))
        mse = sum(((on_icl[0][layer] - target.activations[layer]) ** 2).mean() for layer in range(len(on_icl[0])))
        cross = lambda logits, tokens: -logits.log_softmax(-1)[range(len(tokens)), tokens].mean()
        teacher = model.lm_head(target.hidden).softmax(-1)
        divergence = (teacher * (teacher.log() - on_icl[1].log_softmax(-1))).sum(-1).mean()
        total = total + {"ia2": mse, "sft": cross(on_gold[1], target.gold), "sft-icl": cross(on_icl[1], target.icl),
                         "kd": divergence, "ia2+sft": mse + beta * cross(on_icl[1], target.icl)}[name]
    return total / len(targets)


@pytest.mark.parametrize("name", list(ia2.STAGES))
def test_each_stage_trains_on_its_own_loss_and_nothing_else(name, tiny_model):
    lora.add(tiny_model)
    randomise(tiny_model)
    targets = random_targets(tiny_model, [(9, 1, 1), (14, 5, 3), (4, 2, 7)])
    run = ia2.Run(0, targets, [], 1e-3, beta=0.7)
    loss = ia2.losses(tiny_model, ia2.stage(name), [(run, targets)], backward=True)[0]
    found = [weight.grad.clone() for weight in lora.parameters(tiny_model)]
    tiny_model.zero_grad()
    expected = written_out_loss(tiny_model, name, targets, 0.7)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    for weight, gradient in zip(lora.parameters(tiny_model), found):
        torch.testing.assert_close(gradient, weight.grad, rtol=1e-3, atol=1e-4 * weight.grad.abs().max().item() + 1e-9)


def test_gradients_agree_with_finite_differences(tiny_model):
    lora.add(tiny_model, rank=2)
    randomise(tiny_model)
    targets = random_targets(tiny_model, [(9, 3, 2), (5, 1, 1)])
    run, kind = ia2.Run(0, targets, [], 1e-3, beta=0.5), ia2.stage("ia2+sft")
    ia2.losses(tiny_model, kind, [(run, targets)], backward=True)
    weight = lora.parameters(tiny_model)[1]
    place, step = divmod(weight.grad.abs().argmax().item(), weight.shape[1]), 1e-2
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[place] += sign * step
            values.append(ia2.losses(tiny_model, kind, [(run, targets)])[0])
            weight[place] -= sign * step
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(weight.grad[place].item(), rel=2e-2)


def test_sft_on_chooses_the_responses():
    assert ia2.stage("sft").terms == (("sft", "gold"),) and ia2.stage("sft", "icl").terms == (("sft", "icl"),)
    assert ia2.stage("ia2+sft").terms == (("ia2", "icl"), ("sft", "icl"))
    assert ia2.stage("ia2+sft", "gold").terms == (("ia2", "icl"), ("sft", "gold"))


def test_beta_makes_both_losses_weigh_the_same_at_the_start(tiny_model):
    lora.add(tiny_model)
    targets = random_targets(tiny_model, [(9, 1, 1), (6, 1, 1)])
    run, kind = ia2.Run(0, targets, [], 1e-3), ia2.stage("ia2+sft")
    beta = ia2.start_beta(tiny_model, kind, run)
    mse, cross = (ia2.losses(tiny_model, replace(kind, terms=(term,)), [(run, targets)])[0] for term in kind.terms)
    assert beta * cross == pytest.approx(mse, rel=1e-4)


# ---- training -------------------------------------------------------------------------------------------------------


def test_training_leaves_the_base_model_as_it_was_to_the_bit(tiny_model):
    before = copy.deepcopy(tiny_model.state_dict())
    lora.add(tiny_model)
    targets = random_targets(tiny_model, [(9, 1, 1), (14, 1, 1), (4, 1, 1)])
    ia2.train(tiny_model, ia2.stage("ia2"), [ia2.Run(0, targets[:2], targets[2:], 1e-2)], max_epochs=5)
    after = {name.replace(".base.", "."): weight for name, weight in tiny_model.state_dict().items()
             if ".A." not in name and ".B." not in name}
    assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_the_best_adapter_comes_back_and_training_stops_early(tiny_model):
    """Dev targets that pull another way than the training targets get worse from some step on."""
    lora.add(tiny_model)
    targets = random_targets(tiny_model, [(9, 1, 1)] * 6)
    run = ia2.Run(0, targets[:4], targets[4:], 3e-2)
    kind = ia2.stage("sft")
    ia2.train(tiny_model, kind, [run], max_epochs=50)
    dev = [entry[2] for entry in run.history]
    assert run.dev_loss == min(dev) and run.steps == run.best_step + 10 < 50
    assert [entry[0] for entry in run.history] == list(range(2, run.steps + 1, 2))
    assert ia2.losses(tiny_model, kind, [(run, run.dev)])[0] == pytest.approx(run.dev_loss, rel=1e-6)


def test_one_step_is_adam_without_weight_decay(tiny_model):
    lora.add(tiny_model)
    randomise(tiny_model)
    targets = random_targets(tiny_model, [(9, 1, 1), (5, 1, 1)])
    before = [weight.detach().clone() for weight in lora.parameters(tiny_model)]
    run = ia2.Run(0, targets, targets, 1e-3)
    ia2.losses(tiny_model, ia2.stage("sft"), [(run, targets)], backward=True)
    gradients = [weight.grad.clone() for weight in lora.parameters(tiny_model)]
    tiny_model.zero_grad()
    ia2.train(tiny_model, ia2.stage("sft"), [run], max_epochs=1)
    for weight, start, gradient in zip(lora.parameters(tiny_model), before, gradients):
        torch.testing.assert_close(weight.detach(), start - 1e-3 * gradient / (gradient.abs() + 1e-8), rtol=1e-4, atol=2e-6)


def test_epochs_go_through_every_example_in_batches_of_four():
    run = ia2.Run(0, list("abcdefghij"), [], 1e-3)
    batches = list(run.batches(4, 2))
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    assert sorted(sum(batches[:3], [])) == sorted(sum(batches[3:], [])) == list("abcdefghij")
    assert batches[:3] != batches[3:] and batches == list(run.batches(4, 2))


def test_a_loss_that_is_not_finite_stops_the_run(tiny_model):
    lora.add(tiny_model)
    targets = random_targets(tiny_model, [(9, 1, 1), (5, 1, 1)])
    broken = replace(targets[0], activations=targets[0].activations * float("inf"))
    with pytest.raises(UserError, match="ia2 loss is .* at step 1 .*smaller --lr"):
        ia2.train(tiny_model, ia2.stage("ia2"), [ia2.Run(0, [broken], targets, 1e-3)])


@pytest.mark.parametrize("name", ["ia2", "sft", "ia2+sft"])
def test_runs_trained_together_come_out_as_if_alone(name, tiny_model):
    """15 runs, 5 sets x 3 learning rates, of unequal lengths: dev losses, stopping steps and weights."""
    lora.add(tiny_model, runs=15)
    sets = [random_targets(tiny_model, [(4 + 3 * s + k, 1 + k, 1 + s) for k in range(6)], seed=s) for s in range(5)]
    make = lambda number, s, lr: ia2.Run(number, sets[s][:4], sets[s][4:], lr, seed=f"{s}")
    choices = [(s, lr) for s in range(5) for lr in (1e-3, 3e-3, 1e-2)]
    for number, (s, _) in enumerate(choices):
        lora.reset(tiny_model, number, seed=s)
    together = [make(number, s, lr) for number, (s, lr) in enumerate(choices)]
    ia2.train(tiny_model, ia2.stage(name), together, max_epochs=8)
    for run, (s, lr) in zip(together, choices):
        lora.reset(tiny_model, 0, seed=s)
        alone = make(0, s, lr)
        ia2.train(tiny_model, ia2.stage(name), [alone], max_epochs=8)
        assert run.dev_loss == pytest.approx(alone.dev_loss, rel=1e-4)
        assert (run.steps, run.best_step) == (alone.steps, alone.best_step)
        for key, (A, B) in alone.best.items():
            torch.testing.assert_close(run.best[key][1], B, rtol=1e-2, atol=1e-3)


def test_the_gradient_of_a_run_does_not_depend_on_the_data_of_another(tiny_model):
    lora.add(tiny_model, runs=2)
    randomise(tiny_model, 0), randomise(tiny_model, 1)
    mine, first, second = (random_targets(tiny_model, [(9, 2, 1), (6, 1, 3)], seed=seed) for seed in range(3))
    gradients = []
    for other in (first, second):
        runs = [ia2.Run(0, mine, [], 1e-3), ia2.Run(1, other, [], 1e-3)]
        ia2.losses(tiny_model, ia2.stage("ia2"), [(run, run.train) for run in runs], backward=True)
        gradients.append([weight.grad.clone() for weight in lora.parameters(tiny_model, 0)])
        tiny_model.zero_grad()
    for one, two in zip(*gradients):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6 * one.abs().max().item())


def test_ia2_moves_the_activations_toward_icl_and_sft_fits_its_answers(adapted, tokenizer, few_shot, targets, movies):
    """On held-out queries asim to ICL rises by 0.05 at least (0.65 to 0.83 after the full 50 epochs); SFT answers all
    four training queries right with probability 0.9."""
    exam = ia2.Exam(movies.task, movies.test[:24], base.label_tokens(tokenizer, movies.label_texts), 1)
    icl, = ia2.evaluate(adapted, tokenizer, exam, demos=few_shot.train)
    before, = ia2.evaluate(adapted, tokenizer, exam, references=[icl["targets"]])
    ia2.train(adapted, ia2.stage("ia2"), [ia2.Run(0, *targets, 1e-3)], max_epochs=12)
    after, = ia2.evaluate(adapted, tokenizer, exam, [0], references=[icl["targets"]])
    assert after["asim_table"].mean() > before["asim_table"].mean() + 0.05
    lora.reset(adapted)
    run = ia2.Run(0, targets[0], targets[0], 1e-3)
    ia2.train(adapted, ia2.stage("sft"), [run], max_epochs=30)
    own = replace(exam, examples=few_shot.train)
    assert ia2.evaluate(adapted, tokenizer, own, [0])[0]["accuracy_top1"] == 1
    assert run.dev_loss < -math.log(0.9)


# ---- evaluation -----------------------------------------------------------------------------------------------------


def test_label_scores_equal_one_query_at_a_time(bundled, tokenizer, movies, few_shot):
    """Base and ICL probabilities of ten queries, each alone, straight through transformers with the whole prompt."""
    tokens = base.label_tokens(tokenizer, movies.label_texts)
    exam = ia2.Exam(movies.task, movies.test[:10], tokens, 1)
    for demos in ((), few_shot.train):
        found, = ia2.evaluate(bundled, tokenizer, exam, demos=demos)
        confidences, right, top = [], 0, 0
        for example in exam.examples:
            text = "\n\n".join([demo.query + demo.response for demo in demos] + [example.query])
            with torch.no_grad():
                logits = bundled(torch.tensor([tokenizer(text).input_ids])).logits[0, -1]
            chosen = logits.softmax(-1)[tokens] / logits.softmax(-1)[tokens].sum()
            confidences.append(chosen.max().item())
            right += chosen.argmax().item() == example.label
            top += logits.argmax().item() == tokens[example.label]
        assert (found["accuracy"], found["accuracy_top1"]) == (right / 10, top / 10)
        mean = sum(count * mean for count, mean, _ in found["reliability"]) / 10
        assert mean == pytest.approx(sum(confidences) / 10, abs=1e-4)


def test_several_adapters_on_the_same_queries_score_as_each_alone(tokenizer, movies):
    tiny_model = tiny("qwen3", vocabulary=49152)
    lora.add(tiny_model, runs=3)
    for run in range(3):
        randomise(tiny_model, run, 0.5)
    exam = ia2.Exam(movies.task, movies.test[:12], base.label_tokens(tokenizer, movies.label_texts), 1)
    icl, = ia2.evaluate(tiny_model, tokenizer, exam, demos=movies.pool[:2])
    together = ia2.evaluate(tiny_model, tokenizer, exam, [0, 1, 2], references=[icl["targets"]] * 3)
    for run in range(3):
        alone, = ia2.evaluate(tiny_model, tokenizer, exam, [run], references=[icl["targets"]])
        assert together[run]["accuracy"] == alone["accuracy"]
        assert together[run]["ece"] == pytest.approx(alone["ece"], abs=1e-4)
        torch.testing.assert_close(together[run]["asim_table"], alone["asim_table"], atol=1e-4, rtol=1e-4)
    plain, = ia2.evaluate(tiny_model, tokenizer, exam, references=[icl["targets"]])
    assert abs(plain["ece"] - together[0]["ece"]) > 1e-6, "the base model is not one of the adapters"


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_the_whole_pipeline_in_bfloat16_with_a_float32_adapter(family, tokenizer, movies):
    model = tiny(family, torch.bfloat16, vocabulary=49152)
    lora.add(model)
    shots = data.few_shot_set(movies.pool, 4)
    train, dev = ia2.few_shot_targets(model, tokenizer, shots)
    assert train[0].activations.dtype == torch.bfloat16
    for name in ("ia2", "sft"):
        run = ia2.Run(0, train, dev, 1e-2)
        ia2.train(model, ia2.stage(name), [run], max_epochs=6)
        assert run.history[-1][1] < run.history[0][1]
    exam = ia2.Exam(movies.task, movies.test[:6], base.label_tokens(tokenizer, movies.label_texts), 1)
    icl, = ia2.evaluate(model, tokenizer, exam, demos=shots.train)
    found, = ia2.evaluate(model, tokenizer, exam, [0], references=[icl["targets"]])
    assert found["asim_table"].shape == (3, 1) and 0 <= found["accuracy"] <= 1


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_the_whole_pipeline_on_free_text(family, tokenizer):
    model = tiny(family, vocabulary=49152)
    lora.add(model, runs=2)
    task = TASKS["gsm8k"]
    examples = [data.Example(f"Question:What is {k} and {k}?\nAnswer:", f" Twice {k}.\n#### {2 * k}") for k in range(8)]
    shots = data.few_shot_set(examples, 4)
    train, dev = ia2.few_shot_targets(model, tokenizer, shots, max_tokens=8)
    assert all(target.activations.shape == (3, len(target.icl), 32) for target in train + dev)
    runs = [ia2.Run(number, train, dev, 1e-2) for number in range(2)]
    ia2.train(model, ia2.stage("ia2"), runs, max_epochs=3)
    exam = ia2.Exam(task, examples[6:], [], 8)
    icl, = ia2.evaluate(model, tokenizer, exam, demos=shots.train)
    assert [len(target.icl) for target in icl["targets"]] == [len(target.activations[0]) for target in icl["targets"]]
    found = ia2.evaluate(model, tokenizer, exam, [0, 1], references=[icl["targets"]] * 2)
    assert len(found) == 2 and all(figures["asim_table"].shape[0] == 3 for figures in found)
