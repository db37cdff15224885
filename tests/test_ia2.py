"""pytest tests/test_ia2.py: forward passes, targets, losses, training and evaluation against written-out computations."""
import json
import math
import random
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import ARGS, FAMILIES, random_prompts, randomise, tiny
from torch.overrides import TorchFunctionMode

import data
import ia2
import lora
from sources import models
from sources.offline import UserError

ROOT = Path(__file__).parent.parent


def alone(model, tokens, outputs):
    """(attention outputs (L, G, d), logits (G, V)) of one example, straight through transformers, whole and without a cache."""
    kept, handles = [], []
    for layer in model.get_decoder().layers:
        def keep(module, inputs, output):
            kept.append(output[0])
        handles.append(layer.self_attn.register_forward_hook(keep))
    logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
    for handle in handles:
        handle.remove()
    return torch.stack([output[0, -outputs:] for output in kept]), logits[0, -outputs:]


# ---- 1. forward -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_padded_batch_gives_what_each_example_gives_alone(family):
    """Prompts longer than the sliding windows of 8, with and without demos before them; an adapter is on."""
    model = tiny(family)
    lora.add(model)
    randomise(model, 0.3)
    prompts, responses = random_prompts([5, 30, 12]), random_prompts([3, 1, 6], seed=1)
    demos, = random_prompts([25], seed=2)
    for before in ([], demos):
        cache, rests = models.share_demos(model, [before + p for p in prompts]) if before else (None, prompts)
        for prompt, response, (A, logits) in zip(prompts, responses, ia2.forward(model, rests, responses, cache)):
            expected, expected_logits = alone(model, before + prompt + response[:-1], len(response))
            torch.testing.assert_close(A, expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(logits, expected_logits, atol=1e-4, rtol=1e-4)
    for (A, none), (expected, _) in zip(ia2.forward(model, prompts, responses, head=False), ia2.forward(model, prompts, responses)):
        torch.testing.assert_close(A, expected, atol=1e-5, rtol=1e-5)
        assert none is None


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_gives_what_one_full_pass_a_token_gives(family, tokenizer):
    model = tiny(family)
    prompts, demos = random_prompts([9, 30, 4, 17]), random_prompts([20], seed=5)[0]
    for before in ([], demos):
        expected = []
        for prompt in prompts:
            tokens = before + prompt
            for _ in range(7):
                tokens = tokens + [alone(model, tokens, 1)[1].argmax().item()]
                if tokens[-1] == tokenizer.eos_token_id or tokens[-1] == 2:
                    break
            expected.append(tokens[len(before + prompt):])
        cache, rests = models.share_demos(model, [before + p for p in prompts]) if before else (None, prompts)
        assert models.generate(model, tokenizer, rests, 7, cache) == expected


def test_rows_that_end_early_do_not_disturb_the_others(tiny_model, tokenizer):
    prompts = random_prompts([9, 30, 4, 17, 22])
    tiny_model.generation_config.eos_token_id = []
    plain = [models.generate(tiny_model, tokenizer, [prompt], 10)[0] for prompt in prompts]
    ends = [plain[0][3], plain[2][6]]
    tiny_model.generation_config.eos_token_id = ends
    expected = [tokens[:next((i + 1 for i, token in enumerate(tokens) if token in ends), 10)] for tokens in plain]
    assert len(set(map(len, expected))) > 1
    assert models.generate(tiny_model, tokenizer, prompts, 10) == expected


def test_generation_stops_at_a_blank_line(plain_bundled, tokenizer):
    prompt = data.prompt_tokens(tokenizer, [], "Q: 1+1?\nA: 2\n\nQ: 2+2?\nA: 4\n\nQ: 3+3?\nA:")
    response, = models.generate(plain_bundled, tokenizer, [prompt], 40, stop="\n\n")
    assert len(response) < 40 and tokenizer.decode(response).endswith("\n\n")


def test_hooks_are_gone_also_after_an_error(tiny_model):
    with pytest.raises(RuntimeError):
        with ia2.capture_outputs(tiny_model, torch.tensor([0]), torch.tensor([0])):
            raise RuntimeError
    ia2.forward(tiny_model, [[5, 6]], [[7]])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_model.modules())


@pytest.mark.parametrize("config, kind", [
    (transformers.Phi3Config(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                             pad_token_id=0), transformers.Phi3ForCausalLM),
    (transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50), transformers.GPT2LMHeadModel)])
def test_a_model_without_projections_of_its_own_is_one_sentence(config, kind):
    with pytest.raises(lora.LoRAError, match="has no q_proj, k_proj, o_proj of its own in every layer; use a"):
        lora.add(kind(config))


def test_a_prompt_longer_than_the_context_is_refused(tokenizer):
    model = tiny("Llama", vocabulary=49152, max_position_embeddings=16)
    with pytest.raises(UserError, match="more than the model's context of 16; use a smaller --n"):
        ia2.collect_target(model, tokenizer, data.Example("word " * 20, " yes", 0), [], 1)
    window = tiny("Mistral", vocabulary=49152, sliding_window=8)
    assert ia2.collect_target(window, tokenizer, data.Example("word " * 20, " yes", 0), [], 1).activations.shape == (3, 1, 32)


# ---- 2. targets -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_targets_equal_the_written_out_computation(bundled, tokenizer, few_shot):
    """Label targets of four training and two dev examples; the adapter, which is on, must not show in them."""
    randomise(bundled)
    train, dev = ia2.few_shot_targets(bundled, tokenizer, few_shot)
    assert (len(train), len(dev)) == (4, 2)
    with lora.disable(bundled):
        for i, (example, target) in enumerate(zip(few_shot.train + few_shot.dev, train + dev)):
            demos = few_shot.train if i > 3 else few_shot.train[:i] + few_shot.train[i + 1:]
            if i < 4:
                random.Random(f"demos-0-0-{i}").shuffle(demos)
            text = "\n\n".join([demo.query + demo.response for demo in demos] + [example.query])
            prompt = tokenizer(text).input_ids
            expected, logits = alone(bundled, prompt, 1)
            assert target.prompt == prompt and target.query == tokenizer(example.query).input_ids
            assert target.icl == [logits[0].argmax().item()]
            assert target.gold == tokenizer(example.response).input_ids[:1]
            assert target.activations.shape == (30, 1, 576)
            torch.testing.assert_close(target.activations, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_free_text_targets_equal_one_full_pass_a_token(plain_bundled, tokenizer):
    """G = 10 tokens, a blank line among them does not end a target; gold tokens have the end token."""
    examples = [data.Example("Question:What is two plus two?\nAnswer:", " Two and two is four.\n#### 4"),
                data.Example("Question:What is one plus five?\nAnswer:", " One and five is six.\n#### 6")]
    target = ia2.collect_target(plain_bundled, tokenizer, examples[0], examples[1:], 10)
    prompt, response = tokenizer("\n\n".join([examples[1].query + examples[1].response, examples[0].query])).input_ids, []
    while len(response) < 10 and response[-1:] != [tokenizer.eos_token_id]:
        expected, logits = alone(plain_bundled, prompt + response, len(response) + 1)
        response.append(logits[-1].argmax().item())
    assert target.icl == response and target.activations.shape == (30, len(response), 576)
    torch.testing.assert_close(target.activations, expected, atol=1e-3, rtol=1e-3)
    assert target.gold == [*tokenizer(examples[0].response).input_ids, tokenizer.eos_token_id][:10]


# ---- 3. losses ------------------------------------------------------------------------------------------------------


def random_targets(model, shapes, seed=0):
    """Targets with random tokens and activations; `shapes` are (query, gold, icl) lengths."""
    generator, config = torch.Generator().manual_seed(seed), model.config
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
        A, _ = alone(tiny_model, target.query + target.icl[:-1], len(target.icl))
        for layer in range(3):
            squares = [(A[layer, g, k] - target.activations[layer, g, k]).item() ** 2
                       for g in range(len(target.icl)) for k in range(32)]
            mse += sum(squares) / len(squares) / 3
        _, logits = alone(tiny_model, target.query + target.gold[:-1], len(target.gold))
        cross += sum(-math.log(logits[g].softmax(-1)[token].item()) for g, token in enumerate(target.gold)) / len(target.gold) / 3
    assert ia2.ia2_loss(tiny_model, targets).item() == pytest.approx(mse, rel=1e-5)
    assert ia2.sft_loss(tiny_model, targets).item() == pytest.approx(cross, rel=1e-5)
    assert ia2.mean_loss(tiny_model, ia2.ia2_loss, targets, size=2) == pytest.approx(mse, rel=1e-5)


def test_the_loss_is_the_authors_formula_on_a_set_given_by_hand(bundled, tokenizer):
    """F.mse_loss(A, A_icl) * L, averaged over the examples, for the untrained adapter."""
    rows = [("a gorgeous , witty , seductive movie", 1), ("lacks any real surprise", 0), ("it moves with grace", 1),
            ("unbearably dull from start to end", 0)]
    shots = [data.Example(f"Text:{text}\nLabel:", f"{label}", label) for text, label in rows]
    few = data.FewShotSet(shots, shots[:2], shots, 0, 0)
    targets, _ = ia2.few_shot_targets(bundled, tokenizer, few)
    with torch.no_grad():
        parts = [F.mse_loss(alone(bundled, target.query, 1)[0], target.activations) * 30 for target in targets]
        assert ia2.ia2_loss(bundled, targets).item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-6)


def test_the_ia2_loss_is_zero_without_demos_and_its_gradient_is_that_of_finite_differences(tiny_model, tokenizer):
    lora.add(tiny_model)
    example = data.Example("abc", " x", 0)
    with torch.no_grad():
        target = ia2.Target([5, 6, 7], [5, 6, 7], [8], [8], alone(tiny_model, [5, 6, 7], 1)[0])
    assert ia2.ia2_loss(tiny_model, [target]).item() == pytest.approx(0, abs=1e-9) and example
    model, target = tiny_model, random_targets(tiny_model, [(6, 2, 3)])[0]
    randomise(model)
    for loss in (ia2.ia2_loss, ia2.sft_loss):
        weight = list(lora.weights(model).values())[1]
        model.zero_grad()
        loss(model, [target]).backward()
        for i, j in ((0, 0), (3, 2)):
            values = []
            for step in (1e-2, -1e-2):
                with torch.no_grad():
                    weight[i, j] += step
                    values.append(loss(model, [target]).item())
                    weight[i, j] -= step
            assert weight.grad[i, j].item() == pytest.approx((values[0] - values[1]) / 2e-2, rel=5e-2, abs=2e-3)


# ---- 4. training ----------------------------------------------------------------------------------------------------


def test_training_equals_a_written_out_loop(tiny_model):
    """Five examples in batches of four, Adam by its formula, the dev loss every second step, the best adapter at the end."""
    lora.add(tiny_model)
    start = lora.get_state(tiny_model)
    targets, dev = random_targets(tiny_model, [(9, 2, 4), (6, 1, 1), (7, 2, 2), (8, 1, 3), (5, 3, 2)]), random_targets(tiny_model, [(7, 2, 2)], 1)
    found = ia2.train(tiny_model, ia2.ia2_loss, targets, dev, 1e-2, epochs=3, name="ia2", seed="7-1")
    trained = lora.get_state(tiny_model)
    lora.set_state(tiny_model, start)
    rng, moments, step, history = random.Random("batches-7-1-ia2"), {}, 0, []
    with torch.no_grad():
        best = ia2.ia2_loss(tiny_model, dev).item(), start
    for _ in range(3):
        order = rng.sample(range(5), 5)
        for batch in (order[:4], order[4:]):
            step += 1
            tiny_model.zero_grad()
            ia2.ia2_loss(tiny_model, [targets[i] for i in batch]).backward()
            with torch.no_grad():
                for name, weight in lora.weights(tiny_model).items():
                    m, v = moments.get(name, (0, 0))
                    m, v = 0.9 * m + 0.1 * weight.grad, 0.999 * v + 0.001 * weight.grad ** 2
                    moments[name] = m, v
                    weight -= 1e-2 * (m / (1 - 0.9 ** step)) / ((v / (1 - 0.999 ** step)).sqrt() + 1e-8)
            if step % 2 == 0:
                with torch.no_grad():
                    history.append((step, ia2.ia2_loss(tiny_model, dev).item()))
                if history[-1][1] < best[0]:
                    best = history[-1][1], lora.get_state(tiny_model)
    assert [(i, dev_loss) for i, _, dev_loss in found["history"]] == [(i, pytest.approx(value, rel=1e-4)) for i, value in history]
    assert (found["steps"], found["dev_loss"]) == (6, pytest.approx(best[0], rel=1e-4))
    for name, weight in best[1].items():
        torch.testing.assert_close(trained[name], weight, atol=1e-4, rtol=1e-3)


def test_early_stopping_returns_to_the_best_adapter(tiny_model):
    """A dev loss that falls for two evaluations and then rises: five more evaluations, and the weights of the second."""
    lora.add(tiny_model)
    targets, values = random_targets(tiny_model, [(6, 1, 1)]), iter([4.0, 3.0, 2.0, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5])
    states = []

    def loss(model, batch):
        if torch.is_grad_enabled():
            return ia2.ia2_loss(model, batch)
        states.append(lora.get_state(model))
        return torch.tensor(next(values))
    found = ia2.train(tiny_model, loss, targets, targets, 1e-2, epochs=50)
    assert (found["steps"], found["best_step"], found["dev_loss"]) == (14, 4, 2.0)
    assert all(torch.equal(weight, states[2][name]) for name, weight in lora.get_state(tiny_model).items())


def test_what_never_gets_better_is_left_as_it_was(tiny_model):
    lora.add(tiny_model)
    start, targets = lora.get_state(tiny_model), random_targets(tiny_model, [(6, 1, 1)])

    def loss(model, batch):
        return ia2.ia2_loss(model, batch) if torch.is_grad_enabled() else torch.tensor(1.0)
    found = ia2.train(tiny_model, loss, targets, targets, 1e-2, epochs=50)
    assert (found["steps"], found["best_step"], found["dev_loss"]) == (10, 0, 1.0)
    assert all(torch.equal(weight, start[name]) for name, weight in lora.get_state(tiny_model).items())


def test_a_loss_that_is_not_finite_is_one_sentence(tiny_model):
    lora.add(tiny_model)
    targets = random_targets(tiny_model, [(6, 1, 1)])
    with pytest.raises(UserError, match="the ia2 loss is .* training has diverged: use a smaller --lr"):
        ia2.train(tiny_model, ia2.ia2_loss, targets, targets, 1e30, name="ia2")


def test_ia2_moves_the_activations_toward_icl_and_sft_fits_its_answers(bundled, tokenizer, few_shot, movies):
    test = replace(movies, test=movies.test[:8])
    with lora.disable(bundled):
        icl = ia2.evaluate(bundled, tokenizer, test, few_shot)
        base = ia2.evaluate(bundled, tokenizer, test, icl=icl)
    targets, dev = ia2.few_shot_targets(bundled, tokenizer, few_shot)
    ia2.train(bundled, ia2.ia2_loss, targets, dev, 1e-3, epochs=10)
    after = ia2.evaluate(bundled, tokenizer, test, icl=icl)
    assert after.scores["asim"] > base.scores["asim"] + 0.05 and icl.scores["asim"] == pytest.approx(1)
    lora.reset(bundled)
    found = ia2.train(bundled, ia2.sft_loss, targets, targets, 1e-3, epochs=16)
    own = ia2.evaluate(bundled, tokenizer, replace(test, test=few_shot.train))
    assert own.scores["accuracy"] == 1 and found["dev_loss"] < -math.log(0.9)


# ---- 5. evaluation --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_label_scores_equal_one_query_at_a_time(plain_bundled, tokenizer, movies, few_shot):
    """Base and ICL on 20 queries, each alone, straight through transformers with the whole prompt; two blocks, two orders."""
    test = replace(movies, test=movies.test[:20])
    icl = ia2.evaluate(plain_bundled, tokenizer, test, few_shot)
    base = ia2.evaluate(plain_bundled, tokenizer, test, icl=icl)
    for found, shots in ((base, None), (icl, few_shot)):
        right, mass, answers = 0, 0.0, []
        for i, example in enumerate(test.test):
            demos = data.icl_demos(shots, i // 16) if shots else []
            text = "\n\n".join([demo.query + demo.response for demo in demos] + [example.query])
            A, logits = alone(plain_bundled, tokenizer(text).input_ids, 1)
            probabilities = logits[0].softmax(-1)
            answers.append(probabilities.argmax().item())
            right += answers[-1] == tokenizer(example.response).input_ids[0]
            mass += probabilities[test.label_tokens].sum().item()
            torch.testing.assert_close(found.activations[i], A, atol=2e-3, rtol=1e-3)
        assert found.answers == answers and found.scores["accuracy"] == right / 20
        assert found.scores["label_mass"] == pytest.approx(mass / 20, abs=1e-4)
    cosines = [F.cosine_similarity(a, b, dim=-1).mean().item() for a, b in zip(base.activations, icl.activations)]
    assert base.scores["asim"] == pytest.approx(sum(cosines) / 20, abs=1e-5)
    assert base.scores["agreement"] == sum(a == b for a, b in zip(base.answers, icl.answers)) / 20


def test_figures_do_not_depend_on_the_batch_size(tokenizer, movies, few_shot):
    model = tiny(vocabulary=49152)
    for shots in (None, few_shot):
        first, second = (ia2.evaluate(model, tokenizer, movies, shots, batch_size=size) for size in (16, 5))
        assert first.answers == second.answers and first.scores["ece"] == pytest.approx(second.scores["ece"], abs=1e-6)
        for a, b in zip(first.activations, second.activations):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_demos_are_encoded_once_for_each_block_of_queries(tokenizer, movies, few_shot):
    model, sizes = tiny(vocabulary=49152), []
    demos = len(data.prompt_tokens(tokenizer, few_shot.train, ""))
    model.get_decoder().register_forward_pre_hook(lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape), with_kwargs=True)
    ia2.evaluate(model, tokenizer, movies, few_shot, batch_size=4)
    blocks = -(-len(movies.test) // ia2.BLOCK)
    assert sum(rows == 1 and abs(width - demos) < 8 for rows, width in sizes) == blocks
    assert sum(rows for rows, _ in sizes) == blocks + len(movies.test)


def test_the_order_of_the_demos_changes_from_block_to_block(few_shot):
    orders = [tuple(few_shot.train.index(demo) for demo in data.icl_demos(few_shot, k)) for k in range(12)]
    assert len(set(orders)) > 4 and all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert data.icl_demos(few_shot, 3) == data.icl_demos(few_shot, 3)


@pytest.mark.parametrize("family", ["Qwen3", "Gemma2"])
def test_free_text_is_answered_parsed_and_compared(family, tokenizer, place):
    model = tiny(family, vocabulary=49152)
    args = Namespace(**{**vars(ARGS), "data_dir": place / "bench", "test": 5, "max_tokens": 6})
    test = data.load("gsm8k", tokenizer, args)
    few = data.few_shot_set(test.pool, 2)
    icl = ia2.evaluate(model, tokenizer, test, few)
    base = ia2.evaluate(model, tokenizer, test, icl=icl)
    for i, (A, A_base, response) in enumerate(zip(icl.activations, base.activations, icl.responses)):
        prompt = data.prompt_tokens(tokenizer, data.icl_demos(few, 0), test.test[i].query)
        with torch.no_grad():
            torch.testing.assert_close(A, alone(model, prompt + response[:-1], len(response))[0], atol=1e-4, rtol=1e-4)
            query = data.prompt_tokens(tokenizer, [], test.test[i].query)
            torch.testing.assert_close(A_base, alone(model, query + response[:-1], len(response))[0], atol=1e-4, rtol=1e-4)
    texts = [tokenizer.decode(r, skip_special_tokens=True).strip().split("\n\n")[0] for r in base.responses]
    right = [test.task.same(test.task.parse(text), test.task.parse(e.response)) for text, e in zip(texts, test.test)]
    assert base.scores["accuracy"] == sum(right) / 5 and 0 < base.scores["asim"] < 1


# ---- what only a GPU would show -------------------------------------------------------------------------------------


class Homeless(TorchFunctionMode):
    """Fails when a tensor that was made without a device, or brought to the host, meets one of the model's in an operation.

    On a CPU both are on one device and nothing happens; on a GPU it would be an error in the middle of a run.
    """
    MAKERS = {torch.tensor, torch.zeros, torch.ones, torch.empty, torch.arange, torch.full, torch.rand, torch.randn}
    MOVERS = {torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.MAKERS:
            result = func(*args, **kwargs)
            result.homeless = kwargs.get("device") is None
            return result
        tensors = [value for group in (args, kwargs.values()) for outer in group
                   for value in (outer if isinstance(outer, (list, tuple)) else [outer]) if isinstance(value, torch.Tensor)]
        host = [getattr(tensor, "homeless", False) for tensor in tensors]
        copies = func is torch.Tensor.copy_  # from host to device and back
        if any(host) and not all(host) and not copies and func not in self.MOVERS:
            raise AssertionError(f"{func} mixes tensors of the host with those of the model")
        result = func(*args, **kwargs)
        if func is torch.Tensor.cpu:
            result = result.clone()
            result.homeless = True
        elif func in self.MOVERS and any(isinstance(a, torch.device) for a in (*args, *kwargs.values())):
            result = result.view_as(result)
        elif isinstance(result, torch.Tensor) and host and all(host):
            result.homeless = True
        return result


def test_the_mode_catches_what_it_is_for():
    model = tiny()
    with Homeless(), pytest.raises(AssertionError, match="mixes tensors"):
        model.get_input_embeddings()(torch.tensor([[3]]))
    with Homeless():
        model.get_input_embeddings()(torch.tensor([[3]]).to(torch.device("cpu")))


@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
def test_the_core_keeps_to_the_models_device_in_bfloat16(family, tokenizer, movies, place):
    model = tiny(family, torch.bfloat16, vocabulary=49152)
    texts = data.load("gsm8k", tokenizer, Namespace(**{**vars(ARGS), "data_dir": place / "bench", "test": 3, "max_tokens": 4}))
    with Homeless():
        lora.add(model)
        for task in (replace(movies, test=movies.test[:6]), texts):
            few = data.few_shot_set(task.pool, 4)
            targets, dev = ia2.few_shot_targets(model, tokenizer, few, task.max_tokens)
            assert targets[0].activations.dtype == torch.bfloat16
            for name, loss in (("ia2", ia2.ia2_loss), ("sft", ia2.sft_loss)):
                history = ia2.train(model, loss, targets, dev, 1e-2, epochs=6, name=name)["history"]
                assert history[-1][1] < history[0][1]
            icl = ia2.evaluate(model, tokenizer, task, few)
            found = ia2.evaluate(model, tokenizer, task, icl=icl)
            assert all(weight.dtype == torch.float32 for weight in lora.weights(model).values())
            assert 0 <= found.scores["accuracy"] <= 1 and len(found.scores["asim_layers"]) == 3
            lora.reset(model)


# ---- 6. the experiment ------------------------------------------------------------------------------------------------


def test_the_main_job_prints_its_table_and_keeps_rows_and_adapters(call, tmp_path):
    code, out, err, rows = call("--dataset", "sst2", "--eval", "sst2", "poems")
    assert code == 0, err
    assert "adapter off equals base: True" in err and "ia2: first loss" in err and "ia2: step 2, loss" in err
    assert [(row["method"], row["eval_dataset"]) for row in rows] == [
        (method, task) for method in ("base", "icl", "sft", "ia2", "ia2-sft") for task in ("sst2", "poems")]
    assert "poems* accuracy %" in out and "sst2 among labels %" in out and out.count("\n| ") == 7 and "Compare ia2-sft" in out
    for row in rows:
        assert row["command"].startswith("python ") and row["command"].endswith("--eval sst2 poems") and row["n"] == 4 and row["set"] == 0
        saved = tmp_path / "out" / row["run"]
        assert saved.exists() == (row["lr"] is not None)
        if saved.exists():
            assert {path.name for path in saved.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "training.json"}
            assert row["dev_gold_loss"] > 0 and json.loads((saved / "training.json").read_text())["stages"][0]["history"]
    joint, sft = ([row for row in rows if row["method"] == method][0] for method in ("ia2-sft", "sft"))
    assert [stage["name"] for stage in joint["stages"]] == ["ia2", "sft"] and sft["dev_loss"] == pytest.approx(sft["dev_gold_loss"])


def test_the_same_command_gives_the_same_digits(call):
    drop = ("stages", "seconds", "command")
    first, second = ([{key: value for key, value in row.items() if key not in drop} for row in call(out=out)[3]]
                     for out in ("one", "two"))
    assert first == second and len(first) == 5


def test_a_saved_adapter_gives_the_rows_figures_and_one_method_is_the_same_alone(call, place, tmp_path, tokenizer):
    rows = call()[3]
    alone_row = next(row for row in call("--methods", "ia2-sft", out="alone")[3] if row["method"] == "ia2-sft")
    row = next(row for row in rows if row["method"] == "ia2-sft")
    assert (alone_row["accuracy"], alone_row["dev_loss"]) == (row["accuracy"], row["dev_loss"])
    model = tiny(vocabulary=49152)
    lora.load(model, tmp_path / "out" / row["run"])
    args = Namespace(**{**vars(ARGS), "data_dir": place / "bench", "test": 6})
    found = ia2.evaluate(model, tokenizer, data.load("sst2", tokenizer, args))
    assert found.scores["ece"] == pytest.approx(row["ece"], abs=1e-6)


WATCHED = """
import sys, json
sys.path.insert(0, {root!r})
seen = set()
def watch(frame, event, argument):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith({root!r}) and code.co_name != "<module>":
        seen.add((code.co_filename[len({root!r}):], code.co_qualname))
import ia2
sys.setprofile(watch)
ia2.main()
sys.setprofile(None)
peak = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]  # since exec, unlike ru_maxrss
print(json.dumps([sorted(seen), int(peak) * 1024]))
"""


def test_the_main_job_is_short_and_its_memory_is_bounded(tmp_path):
    """At most 70 functions of ours in 8 files; at most 2.5 times the weights, not growing with --test."""
    def watched(queries, out):
        command = [sys.executable, "-c", WATCHED.format(root=f"{ROOT}/"), "--dataset", "movies",
                   "--epochs", "1", "--test", queries, "--out", tmp_path / out]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(result.stdout.splitlines()[-1])

    (seen, few), (_, many) = watched("2", "few"), watched("32", "many")
    ours = ("ia2.py", "lora.py", "data.py", "metrics.py", "sources", "lab")  # not .venv
    called = {(file, name) for file, name in seen
              if file.split("/")[0] in ours and not name.rpartition(".")[2].startswith("<")}
    assert len(called) <= 70 and len({file for file, _ in called}) <= 8, sorted(called)
    bound = min(2.5 * 4 * 134_515_008, 1.15 * few)
    # Huge pages make a process larger now and then.
    assert many < bound or watched("32", "again")[1] < bound, (few, many)
