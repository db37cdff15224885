"""pytest tests/test_evaluation.py: answers, scores and similarities, against one query at a time;
what only a GPU would show.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import alone, joined, tiny
from torch.overrides import TorchFunctionMode

import data
import ia2
import lora
import metrics

# ---- evaluation ----------------------------------------------------------------------------------


@torch.no_grad()
def test_label_scores_equal_one_query_at_a_time(
    plain_bundled, tokenizer, movies, few_shot, monkeypatch
):
    """Base and ICL on 5 queries, each alone, straight through transformers with the whole prompt;
    two blocks have two orders of the demos.
    """
    monkeypatch.setattr(data, "BLOCK", 3)
    test = replace(movies, test=movies.test[:5])
    icl = ia2.evaluate(plain_bundled, tokenizer, test, few_shot)
    base = ia2.evaluate(plain_bundled, tokenizer, test, icl=icl)
    for evaluation, shots in ((base, None), (icl, few_shot)):
        answers, right, mass, nll = [], 0, 0.0, 0.0
        for i, example in enumerate(test.test):
            demos = data.icl_demos(shots, i // 3) if shots else []
            prompt = tokenizer(joined(demos, example.query)).input_ids
            A, logits = alone(plain_bundled, prompt, 1)
            probabilities = logits[0].softmax(-1)
            answers.append(probabilities.argmax().item())
            right += answers[-1] == tokenizer(example.response).input_ids[0]
            labels = probabilities[test.label_tokens]
            mass += labels.sum().item()
            nll -= math.log((labels[example.label] / labels.sum()).item())
            torch.testing.assert_close(evaluation.activations[i], A, atol=2e-3, rtol=1e-3)
        assert evaluation.answers == answers and evaluation.scores["accuracy"] == right / 5
        assert evaluation.scores["label_mass"] == pytest.approx(mass / 5, abs=1e-4)
        assert evaluation.scores["nll"] == pytest.approx(nll / 5, abs=1e-3)
    cosines = []
    for A, A_icl in zip(base.activations, icl.activations):
        cosines.append(F.cosine_similarity(A, A_icl, dim=-1).mean().item())
    compared = ia2.compare(base, icl)
    assert compared["asim"] == pytest.approx(sum(cosines) / 5, abs=1e-5)
    same = [answer == other for answer, other in zip(base.answers, icl.answers)]
    assert compared["agreement"] == sum(same) / 5


def test_outcomes_hold_what_the_scores_are_made_of(plain_bundled, tokenizer, movies, few_shot):
    test = replace(movies, test=movies.test[:12])
    scores = ia2.evaluate(plain_bundled, tokenizer, test, few_shot).scores
    among, top1, nll = 0, 0, 0.0
    for example, outcome in zip(test.test, scores["outcomes"]):
        label, chosen, token_label, confidence, shares = outcome
        assert label == example.label and sum(shares) == pytest.approx(1, abs=1e-3)
        assert 0 <= confidence <= 1
        among += chosen == label
        top1 += token_label == label
        nll -= math.log(max(shares[label], 1e-9))
    assert scores["accuracy"] == top1 / 12 and scores["accuracy_among_labels"] == among / 12
    assert scores["nll"] == pytest.approx(nll / 12, abs=0.01)


def test_two_texts_without_an_answer_do_not_agree():
    A = [torch.ones(2, 1, 4)] * 5
    ours = ia2.Evaluation({}, [None, "5", "5", None, ""], [None] * 5, [[]] * 5, A)
    icl = ia2.Evaluation({}, [None, "5", "6", "7", ""], [None] * 5, [[]] * 5, A)
    assert ia2.compare(ours, icl)["agreement"] == 1 / 5


def test_centred_similarity_ignores_what_all_queries_share():
    """The ICL activations plus one vector for all keep their centred similarity; a constant has
    none.
    """
    generator = torch.Generator().manual_seed(0)
    constant = 10 * torch.randn(2, 1, 16, generator=generator)
    A_icl = [constant + torch.randn(2, 1, 16, generator=generator) for _ in range(30)]
    shifted = [A + torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(5)) for A in A_icl]
    mean = torch.stack(A_icl).mean(0)
    assert metrics.asim_centred(shifted, A_icl).mean().item() == pytest.approx(1, abs=1e-5)
    constants = [mean] * 30
    raw = torch.stack([metrics.asim(A, B) for A, B in zip(constants, A_icl)]).mean()
    assert raw > 0.97 and abs(metrics.asim_centred(constants, A_icl).mean()) < 1e-3


def test_demos_are_encoded_once_for_each_block_of_queries(tokenizer, movies, few_shot):
    model = tiny(vocabulary=49152)
    shapes = []
    demos = len(data.prompt_tokens(tokenizer, few_shot.train, ""))
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    ia2.evaluate(model, tokenizer, movies, few_shot)
    blocks = math.ceil(len(movies.test) / data.BLOCK)
    assert sum(rows == 1 and abs(width - demos) < 8 for rows, width in shapes) == blocks
    assert sum(rows for rows, _ in shapes) == blocks + len(movies.test)


def test_the_order_of_the_demos_changes_from_block_to_block(few_shot):
    orders = []
    for block in range(12):
        orders.append([few_shot.train.index(demo) for demo in data.icl_demos(few_shot, block)])
    assert len({tuple(order) for order in orders}) > 4
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert data.icl_demos(few_shot, 3) == data.icl_demos(few_shot, 3)


@pytest.mark.parametrize("family", ["Qwen3", "Gemma2"])
@torch.no_grad()
def test_free_text_is_answered_parsed_and_compared(family, tokenizer, place):
    model = tiny(family, vocabulary=49152)
    options = data.Options(data_dir=str(place / "bench"), max_tokens=6)
    test = data.draw_test(data.load("gsm8k", tokenizer, options), 5)
    few_shot = data.few_shot_set(test.pool, 2)
    icl = ia2.evaluate(model, tokenizer, test, few_shot)
    base = ia2.evaluate(model, tokenizer, test, icl=icl)
    for i, response in enumerate(icl.responses):
        query = test.test[i].query
        for evaluation, demos in ((icl, data.icl_demos(few_shot, 0)), (base, [])):
            prompt = data.prompt_tokens(tokenizer, demos, query)
            A, _ = alone(model, prompt + response[:-1], len(response))
            torch.testing.assert_close(evaluation.activations[i], A, atol=1e-4, rtol=1e-4)
    right = []
    for response, example in zip(base.responses, test.test):
        text = tokenizer.decode(response, skip_special_tokens=True).strip().split("\n\n")[0]
        right.append(test.spec.same(test.spec.parse(text), test.spec.parse(example.response)))
    assert base.scores["accuracy"] == sum(right) / 5
    assert 0 < ia2.compare(base, icl)["asim"] < 1


@torch.no_grad()
def test_an_edit_reaches_every_generated_token(tokenizer, place):
    """Generation with an edit is greedy decoding one full pass a token with the same edit."""
    model = tiny(vocabulary=49152)
    shift = torch.randn(3, 32, generator=torch.Generator().manual_seed(3))

    def edit(layer, outputs):
        return outputs + shift[layer]

    options = data.Options(data_dir=str(place / "bench"), max_tokens=4)
    test = data.draw_test(data.load("gsm8k", tokenizer, options), 3)
    evaluation = ia2.evaluate(model, tokenizer, test, edit=edit)
    for example, response in zip(test.test, evaluation.responses):
        prompt = data.prompt_tokens(tokenizer, [], example.query)
        written = []
        for _ in response:
            [reading] = ia2.forward(model, [prompt], [[*written, 0]], edit=edit)
            written.append(reading.logits[-1].argmax().item())
        assert written == response


# ---- what only a GPU would show ------------------------------------------------------------------


class Homeless(TorchFunctionMode):
    """Fails when a tensor that was made without a device, or brought to the host, meets one of the
    model's in an operation.

    On a CPU both are on one device and nothing happens; on a GPU it would be an error in the middle
    of a run.
    """

    MAKERS = {
        torch.tensor,
        torch.zeros,
        torch.ones,
        torch.empty,
        torch.arange,
        torch.full,
        torch.rand,
        torch.randn,
    }
    MOVERS = {torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.MAKERS:
            result = func(*args, **kwargs)
            result.homeless = kwargs.get("device") is None
            return result
        host = [getattr(tensor, "homeless", False) for tensor in tensors_of(args, kwargs)]
        copies = func is torch.Tensor.copy_  # from host to device and back
        if any(host) and not all(host) and not copies and func not in self.MOVERS:
            raise AssertionError(f"{func} mixes tensors of the host with those of the model")
        result = func(*args, **kwargs)
        to_device = any(isinstance(value, torch.device) for value in (*args, *kwargs.values()))
        if func is torch.Tensor.cpu:
            result = result.clone()
            result.homeless = True
        elif func in self.MOVERS and to_device:
            result = result.view_as(result)
        elif host and all(host):
            for tensor in tensors_of((result,), {}):
                tensor.homeless = True
        return result


def tensors_of(args, kwargs):
    """The tensors among arguments, and in lists among them."""
    found = []
    for value in (*args, *kwargs.values()):
        values = value if isinstance(value, (list, tuple)) else [value]
        found += [each for each in values if isinstance(each, torch.Tensor)]
    return found


def test_the_mode_catches_what_it_is_for():
    model = tiny()
    with Homeless(), pytest.raises(AssertionError, match="mixes tensors"):
        model.get_input_embeddings()(torch.tensor([[3]]))
    with Homeless():
        model.get_input_embeddings()(torch.tensor([[3]]).to(torch.device("cpu")))


@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
def test_the_core_keeps_to_the_models_device_in_bfloat16(family, tokenizer, movies, place):
    model = tiny(family, torch.bfloat16, vocabulary=49152)
    options = data.Options(data_dir=str(place / "bench"), max_tokens=4)
    texts = data.draw_test(data.load("gsm8k", tokenizer, options), 3)
    with Homeless():
        lora.add(model)
        for task in (replace(movies, test=movies.test[:6]), texts):
            few_shot = data.few_shot_set(task.pool, 4)
            targets, dev = ia2.few_shot_targets(model, tokenizer, few_shot, task.max_tokens)
            assert targets[0].A_icl.dtype == torch.bfloat16
            for loss in (ia2.ia2_loss, ia2.sft_loss):
                recipe = ia2.Recipe(lr=1e-2, epochs=6)
                history = ia2.train(model, loss, targets, dev, recipe).history
                assert history[-1][1] < history[0][1]
            icl = ia2.evaluate(model, tokenizer, task, few_shot)
            compared = ia2.compare(ia2.evaluate(model, tokenizer, task, icl=icl), icl)
            weights = lora.weights(model).values()
            assert all(weight.dtype == torch.float32 for weight in weights)
            assert 0 <= compared["accuracy"] <= 1 and len(compared["asim_layers"]) == 3
            lora.reset(model)
