"""pytest tests/test_model.py: packed rows, captured activations, the shared prefix and generation against plain passes."""
import pytest
import torch
from conftest import CPU, random_prompts, randomise, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import lora
import model as base
import packing
from fetch import UserError

LENGTHS = [5, 17, 3, 60, 1, 31, 250, 8]


@torch.no_grad()
def plain_activations(model, tokens, outputs):
    """Attention outputs of one example alone, computed by hand: o_proj of what sdpa puts into it, layer by layer."""
    found, handles = [], [layer.self_attn.o_proj.register_forward_hook(lambda m, a, out: found.append(out[0, -outputs:]))
                          for layer in model.get_decoder().layers]
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -outputs:]
    for handle in handles:
        handle.remove()
    return torch.stack(found), logits


def packed_outputs(model, sequences, **options):
    """Every sequence's (activations, hidden), in the given order."""
    found = [None] * len(sequences)
    with torch.no_grad():
        for placed, output in base.forward(model, sequences, capture=True, **options):
            for number, places in placed:
                found[number] = output.activations[:, places], output.hidden[places]
    return found


def close(found, expected, tolerance=1e-4):
    scale = max(1.0, expected.abs().max().item())
    assert (found - expected).abs().max().item() <= tolerance * scale


def check_packed(model):
    prompts = random_prompts(LENGTHS)
    outputs = [1, 4, 3, 10, 1, 31, 1, 2]
    found = packed_outputs(model, [base.Sequence(*pair) for pair in zip(prompts, outputs)])
    for prompt, count, (activations, hidden) in zip(prompts, outputs, found):
        expected, logits = plain_activations(model, prompt, count)
        assert activations.shape == expected.shape == (model.config.num_hidden_layers, count, model.config.hidden_size)
        close(activations, expected)
        close(base.logits(model, hidden), logits, 1e-3)


def test_packed_rows_equal_one_at_a_time(tiny_model):
    check_packed(tiny_model)


def test_packed_rows_equal_one_at_a_time_on_the_bundled_model(bundled):
    check_packed(bundled)


def test_passes_of_few_tokens_give_the_same(tiny_model):
    sequences = [base.Sequence(prompt, 1) for prompt in random_prompts(LENGTHS)]
    many, few = packed_outputs(tiny_model, sequences), packed_outputs(tiny_model, sequences, max_tokens=1)
    for (one, _), (other, _) in zip(many, few):
        close(one, other)


def test_activations_alone_are_the_same_and_leave_the_model_as_it_was(tiny_model):
    lora.add(tiny_model)
    sequences = [base.Sequence(tokens, 3) for tokens in random_prompts([12, 7, 20])]
    last = tiny_model.get_decoder().layers[-1]
    mlp, found = last.mlp, []
    for hidden in (True, False):
        (_, output), = base.forward(tiny_model, sequences, capture=True, hidden=hidden)
        output.activations.square().sum().backward()
        found.append((output.activations, [weight.grad for weight in lora.parameters(tiny_model)]))
        for weight in lora.parameters(tiny_model):
            weight.grad = None
        assert last.mlp is mlp and (output.hidden is not None) == hidden
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="stopped"), base.without_last_mlp(tiny_model):
        raise RuntimeError("stopped")
    assert last.mlp is mlp


def test_captured_output_is_what_the_residual_stream_adds(tiny_model):
    """The input of the next norm minus the layer's own input is the captured self-attention output."""
    layer, seen = tiny_model.get_decoder().layers[1], {}
    handles = [layer.register_forward_pre_hook(lambda m, args: seen.update(before=args[0])),
               layer.post_attention_layernorm.register_forward_pre_hook(lambda m, args: seen.update(after=args[0]))]
    (_, output), = base.forward(tiny_model, [base.Sequence(random_prompts([12])[0], 5)], capture=True)
    for handle in handles:
        handle.remove()
    close(output.activations[1], (seen["after"] - seen["before"])[0, -5:])


def test_hooks_are_removed_whatever_happens(tiny_model):
    count = lambda: sum(len(module._forward_hooks) for module in tiny_model.modules())
    own = tiny_model.get_decoder().layers[0].self_attn.register_forward_hook(lambda *arguments: None)
    with pytest.raises(RuntimeError):
        with base.capture_attention(tiny_model, torch.tensor([0]), torch.tensor([0])):
            assert count() == 1 + tiny_model.config.num_hidden_layers
            raise RuntimeError
    assert count() == 1, "the hook of another owner stays"
    own.remove()


def test_a_shared_prefix_equals_the_whole_prompt(tiny_model):
    start, *rest = random_prompts([40, 6, 11, 2])
    prefix = base.encode_prefix(tiny_model, start)
    found = packed_outputs(tiny_model, [base.Sequence(tokens, 2) for tokens in rest], prefix=prefix)
    for tokens, (activations, hidden) in zip(rest, found):
        expected, logits = plain_activations(tiny_model, start + tokens, 2)
        close(activations, expected)
        close(base.logits(tiny_model, hidden), logits, 1e-3)
    assert prefix.layers[0][0].shape[2] == 40, "the prefix is not touched by the passes that use it"


def test_split_prefix_leaves_a_token_to_every_prompt():
    assert base.split_prefix([(1, 2, 3, 4), (1, 2, 5)]) == [1, 2]
    assert base.split_prefix([(1, 2), (1, 2, 5)]) == [1]
    assert base.split_prefix([(1, 2, 3)]) == [1, 2]


@torch.no_grad()
def plain_greedy(model, tokenizer, prompt, max_tokens):
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        tokens.append(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax().item())
        if tokens[-1] == tokenizer.eos_token_id:
            break
    return tokens[len(prompt):]


def test_generation_equals_one_full_forward_per_token(tiny_model, tokenizer):
    prompts = random_prompts([9, 30, 4, 17])
    expected = [plain_greedy(tiny_model, tokenizer, prompt, 12) for prompt in prompts]
    assert base.generate(tiny_model, tokenizer, prompts, 12) == expected
    start = random_prompts([20], seed=5)[0]
    expected = [plain_greedy(tiny_model, tokenizer, start + prompt, 7) for prompt in prompts]
    assert base.generate(tiny_model, tokenizer, prompts, 7, prefix=base.encode_prefix(tiny_model, start)) == expected


def test_rows_that_end_early_do_not_disturb_the_others(tiny_model, tokenizer):
    """The token that some rows choose first is made the end token, so that rows leave at different steps."""
    prompts = random_prompts([9, 30, 4, 17, 22])
    plain = [plain_greedy(tiny_model, tokenizer, prompt, 10) for prompt in prompts]
    tiny_model.generation_config.eos_token_id = [plain[0][3], plain[2][6]]
    ends = set(tiny_model.generation_config.eos_token_id)
    expected = [tokens[:next((place + 1 for place, token in enumerate(tokens) if token in ends), 10)] for tokens in plain]
    assert len(set(map(len, expected))) > 1
    assert base.generate(tiny_model, tokenizer, prompts, 10) == expected


def test_generation_routes_each_prompt_to_its_adapter(tiny_model, tokenizer):
    lora.add(tiny_model, runs=2)
    randomise(tiny_model, 1, scale=1.0)
    prompts = random_prompts([9, 30, 4])
    both = base.generate(tiny_model, tokenizer, prompts * 2, 6, runs=[0] * 3 + [1] * 3)
    assert both[:3] == base.generate(tiny_model, tokenizer, prompts, 6, runs=[0] * 3)
    assert both[3:] == base.generate(tiny_model, tokenizer, prompts, 6, runs=[1] * 3)
    assert both[:3] != both[3:]


def test_generation_stops_at_a_blank_line(bundled, tokenizer):
    prompt = base.encode(tokenizer, "Q: 1+1?\nA: 2\n\nQ: 2+2?\nA: 4\n\nQ: 3+3?\nA:")
    response, = base.generate(bundled, tokenizer, [prompt], 40, stop="\n\n")
    assert len(response) < 40 and tokenizer.decode(response).endswith("\n\n")


def test_a_tokenizer_without_an_end_is_refused(tiny_model):
    class Endless:
        eos_token_id = None
    with pytest.raises(UserError, match="end-of-sequence"):
        base.end_tokens(tiny_model, Endless())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 3)), min_size=1, max_size=40), st.integers(1, 900))
def test_passes_hold_every_sequence_once_within_their_tokens(pairs, max_tokens):
    sequences = [base.Sequence((5,) * length, 1, run) for length, run in pairs]
    passes = packing.lay_passes(sequences, max_tokens)
    assert sorted(number for rows in passes for row in rows for number in row) == list(range(len(pairs)))
    owners = [[sequences[number].run for row in rows for number in row] for rows in passes]
    assert all(max(before) <= min(after) for before, after in zip(owners, owners[1:])), "runs stay together"
    for rows in passes:
        lengths = [[len(sequences[number].tokens) for number in row] for row in rows]
        assert sum(map(sum, lengths)) <= max(max_tokens, lengths[0][0])
        assert all(sum(row) <= max(packing.ROW_TOKENS, lengths[0][0]) for row in lengths)
        packed = packing.pack(sequences, rows, 7, CPU)
        for place, (number, spot) in enumerate(packing.spans(packed, sequences)):
            row, column = packed.rows[spot].item(), packed.columns[spot].item()
            first = column - len(sequences[number].tokens) + 1
            assert packed.positions[row, first:column + 1].tolist() == list(range(7, 7 + column - first + 1))
            seen = packed.mask[row, 0, column].nonzero().flatten().tolist()
            assert seen == [*range(7), *range(7 + first, 7 + column + 1)], "it sees the prefix and itself, nothing else"


def test_rows_are_filled_well():
    lengths = torch.randint(15, 45, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    (rows,) = packing.lay_passes([base.Sequence((5,) * length, 1) for length in lengths], 10_000)
    width = max(sum(lengths[number] for number in row) for row in rows)
    assert sum(lengths) / (len(rows) * width) > 0.95


def test_labels_that_start_alike_are_refused(tokenizer):
    with pytest.raises(UserError, match="' 1' and ' 2 posit' start with the same token"):
        base.label_tokens(tokenizer, [" 1", " 2 posit"])


def test_the_check_refuses_a_model_whose_logits_it_does_not_know():
    model = tiny("llama")
    model.lm_head.register_forward_hook(lambda module, arguments, output: output * (1 + (output.shape[1] == 7)))
    with pytest.raises(UserError, match="logits on packed rows differ"):
        base.check(model, "odd")


@pytest.mark.parametrize("name", ["nonsense", "no/such/folder"])
def test_unknown_models_are_named(name):
    with pytest.raises(UserError, match="unknown model .*smollm2-135m"):
        base.find(name)


def test_a_hub_model_out_of_reach_is_one_sentence(monkeypatch):
    import huggingface_hub

    def refuse(*arguments, **options):
        raise ConnectionError("no route")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(UserError, match="hub cannot be reached"):
        base.find("qwen3-4b")


def test_auto_picks_the_bundled_model_without_a_gpu():
    assert base.pick_model("auto", CPU) == "smollm2-135m"


def test_the_bundled_model_is_read_right(bundled, tokenizer):
    """A random sequence said twice is predicted well the second time, which wrong q and k weights cannot do."""
    tokens = random_prompts([40])[0] * 2
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(bundled(torch.tensor([tokens])).logits[0, :-1],
                                                   torch.tensor(tokens[1:]), reduction="none")
    assert losses[:39].mean() > 8 and losses[45:].mean() < 4
