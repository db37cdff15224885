"""pytest tests/engine/test_running.py: passes, shared prefixes and decoding against whole passes,
one prompt at a time; what is refused, and why.
"""

import pytest
import torch
import transformers
from conftest import FAMILIES, random_prompts, tiny
from small import multimodal
from transformers import DynamicCache

from engine import cpu, running
from support.cli import UserError

TOKENS = [5, 6, 7, 8]


@torch.no_grad()
def whole_pass(model, tokens):
    """The logits (T, V) of one row, straight through transformers, without a cache."""
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def greedy(model, prompt, max_tokens, ends):
    """A greedy response by one whole pass for each token."""
    response = []
    while len(response) < max_tokens and response[-1:] != ends:
        token = whole_pass(model, prompt + response)[-1].argmax().item()
        response.append(token)
        if token in ends:
            break
    return response


# ---- one pass ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_sped_up", [False, True])
@torch.no_grad()
def test_logits_at_chosen_positions_are_those_of_whole_passes(family, is_sped_up):
    """Rows of three lengths, with and without a prefix, beyond the sliding windows of 8."""
    model = tiny(family)
    quick = tiny(family)
    if is_sped_up:
        cpu.speed_up(quick)  # padding is left out
    prompts = random_prompts([5, 30, 12])
    [demos] = random_prompts([25], seed=2)
    positions = [(0, 4), (1, 3), (1, 29), (2, 0), (2, 11)]
    rows = [row for row, _ in positions]
    columns = [column for _, column in positions]
    plain = running.logits_at(quick, prompts, rows, columns)
    prefix, _ = running.share_prefix(quick, [[*demos, 3], [*demos, 4]])
    behind_demos = running.logits_at(quick, prompts, rows, columns, prefix)
    for i, (row, column) in enumerate(positions):
        expected = whole_pass(model, prompts[row])[column]
        torch.testing.assert_close(plain[i], expected, atol=1e-4, rtol=1e-4)
        expected = whole_pass(model, demos + prompts[row])[len(demos) + column]
        torch.testing.assert_close(behind_demos[i], expected, atol=1e-4, rtol=1e-4)


def test_the_head_sees_only_the_chosen_positions(tiny_model):
    seen = []
    head = tiny_model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    running.logits_at(tiny_model, [TOKENS, TOKENS], [0, 1, 1], [3, 0, 3])
    handle.remove()
    assert seen == [(1, 3, 500)]


def test_hooks_are_gone_also_after_an_error(tiny_model):
    with pytest.raises(IndexError):
        running.logits_at(tiny_model, [TOKENS], [7], [0])
    with (
        pytest.raises(ZeroDivisionError),
        running.edit_attention(tiny_model, [0], [0], lambda layer, outputs: outputs),
    ):
        raise ZeroDivisionError
    for module in tiny_model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


@torch.no_grad()
def test_edited_attention_is_what_the_pass_goes_on_with(tiny_model):
    """Half of each layer's outputs at one position, against the same done to o_proj's outputs."""

    def halve(layer, outputs):
        return outputs / (layer + 2)

    tokens = torch.tensor([TOKENS])
    with running.edit_attention(tiny_model, [0], [2], halve):
        edited = tiny_model(tokens).logits
    before = tiny_model(tokens).logits
    handles = []
    for i, layer in enumerate(tiny_model.model.layers):

        def scale(module, inputs, output, i=i):
            output[0, 2] /= i + 2
            return output

        handles.append(layer.self_attn.o_proj.register_forward_hook(scale))
    expected = tiny_model(tokens).logits
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(edited, expected)
    assert not torch.allclose(edited[0, 3], before[0, 3], atol=1e-3)
    with running.edit_attention(tiny_model, [0], [2], None):
        assert torch.equal(tiny_model(tokens).logits, before)


# ---- prefixes ------------------------------------------------------------------------------------


def test_what_prompts_share_is_encoded_once_and_a_token_is_left_of_each(tiny_model):
    prefix, rests = running.share_prefix(tiny_model, [[5, 6, 7, 8], [5, 6, 9], [5, 6, 7]])
    assert prefix.get_seq_length() == 2
    assert rests == [[7, 8], [9], [7]]
    prefix, rests = running.share_prefix(tiny_model, [TOKENS])
    assert prefix.get_seq_length() == 3
    assert rests == [[8]]
    prefix, rests = running.share_prefix(tiny_model, [[5, 6, 7], [5, 6, 7, 8]])
    assert prefix.get_seq_length() == 2
    assert rests == [[7], [7, 8]]


@pytest.mark.parametrize("prompts", [[[5, 6], [6, 5]], [[5], [5, 6]], [[7]]])
def test_prompts_that_share_nothing_have_no_prefix(prompts, tiny_model):
    assert running.share_prefix(tiny_model, prompts) == (None, prompts)


@pytest.mark.parametrize("family", ["Qwen3", "Mistral", "Gemma3Text"])
@torch.no_grad()
def test_a_prefix_serves_many_batches(family):
    """Each batch adds to a copy; the prefix, full or slid, stays as it was."""
    model = tiny(family)
    [demos] = random_prompts([20])
    prefix, _ = running.share_prefix(model, [[*demos, 3]])
    before = [layer.keys.clone() for layer in prefix.layers]
    for count in (1, 3):
        prompts = random_prompts([9] * count, seed=count)
        running.logits_at(model, prompts, [0], [8], prefix)
    for layer, keys in zip(prefix.layers, before):
        assert torch.equal(layer.keys, keys)
    assert prefix.get_seq_length() == 20


# ---- decoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_gives_what_one_whole_pass_a_token_gives(family, tokenizer):
    model = tiny(family)
    prompts = random_prompts([9, 30, 4, 17])
    [demos] = random_prompts([20], seed=5)
    ends = running.end_tokens(model, tokenizer)
    assert running.generate(model, tokenizer, prompts, 7) == [
        greedy(model, prompt, 7, ends) for prompt in prompts
    ]
    full = [demos + prompt for prompt in prompts]
    with torch.no_grad():
        prefix, rests = running.share_prefix(model, full)
    assert running.generate(model, tokenizer, rests, 7, prefix) == [
        greedy(model, prompt, 7, ends) for prompt in full
    ]


@torch.no_grad()
def test_a_multimodal_model_runs_on_texts(tokenizer):
    model = multimodal()
    running.check_model(model, TOKENS)
    prompts = random_prompts([9, 30, 4])
    [demos] = random_prompts([20], seed=5)
    ends = running.end_tokens(model, tokenizer)
    full = [demos + prompt for prompt in prompts]
    expected = [greedy(model, prompt, 7, ends) for prompt in full]
    prefix, rests = running.share_prefix(model, full)
    assert running.generate(model, tokenizer, rests, 7, prefix) == expected
    last = [len(rest) - 1 for rest in rests]
    logits = running.logits_at(model, rests, [0, 1, 2], last, prefix)
    for prompt, logit in zip(full, logits):
        torch.testing.assert_close(logit, whole_pass(model, prompt)[-1], atol=1e-4, rtol=1e-4)


def test_rows_that_end_early_do_not_disturb_the_others(tiny_model, tokenizer):
    prompts = random_prompts([9, 30, 4, 17, 22])
    tiny_model.generation_config.eos_token_id = []
    plain = [running.generate(tiny_model, tokenizer, [prompt], 10)[0] for prompt in prompts]
    ends = [plain[0][3], plain[2][6]]
    tiny_model.generation_config.eos_token_id = ends
    expected = [greedy(tiny_model, prompt, 10, ends) for prompt in prompts]
    assert len({len(response) for response in expected}) > 1
    assert running.generate(tiny_model, tokenizer, prompts, 10) == expected


def test_generation_stops_at_a_blank_line(plain_bundled, tokenizer):
    text = "Q: 1+1?\nA: 2\n\nQ: 2+2?\nA: 4\n\nQ: 3+3?\nA:"
    prompt = tokenizer(text).input_ids
    [response] = running.generate(plain_bundled, tokenizer, [prompt], 40, stop="\n\n")
    assert len(response) < 40
    assert tokenizer.decode(response).endswith("\n\n")


def test_a_blank_line_may_have_carriage_returns(tiny_model, tokenizer):
    class Tokenizer:
        eos_token_id = tokenizer.eos_token_id

        def decode(self, tokens):
            return "x" if len(tokens) < 3 else "x\r\n\r\n"

    [response] = running.generate(tiny_model, Tokenizer(), random_prompts([9]), 6, stop="\n\n")
    assert len(response) == 3


def test_blank_lines_before_an_answer_do_not_stop_it():
    class Tokenizer:
        eos_token_id = 499

        def decode(self, tokens):
            return "".join("\n" if token == newline else "x" for token in tokens)

    model = tiny("Qwen3")
    model.generation_config.eos_token_id = None
    [prompt] = random_prompts([9])
    plain = greedy(model, prompt, 6, [499])
    newline = plain[0]
    assert plain[1] != newline
    assert running.generate(model, Tokenizer(), [prompt], 6, stop="\n") == [
        plain[: 1 + plain[1:].index(newline) + 1] if newline in plain[1:] else plain
    ]


def test_the_end_tokens_are_those_of_the_tokenizer_and_of_the_generation_settings(tokenizer):
    model = tiny("Qwen3")
    own = tokenizer.eos_token_id
    for listed, expected in ((None, {own}), (9, {own, 9}), ([9, 11], {own, 9, 11}), ([], {own})):
        model.generation_config.eos_token_id = listed
        assert running.end_tokens(model, tokenizer) == expected
    model.generation_config = None
    assert running.end_tokens(model, tokenizer) == {own}


def test_a_tokenizer_without_an_end_token_is_one_sentence(tiny_model):
    class Tokenizer:
        eos_token_id = None

    with pytest.raises(UserError, match="no end-of-sequence token.*use another model or a task"):
        running.generate(tiny_model, Tokenizer(), [TOKENS], 3)


# ---- limits --------------------------------------------------------------------------------------


def test_a_prompt_longer_than_the_context_is_refused():
    model = tiny("Llama", max_position_embeddings=16)
    running.check_length(model, [5] * 15, 1)
    with pytest.raises(UserError, match="a prompt has 17 tokens.*context of 16; use a smaller --n"):
        running.check_length(model, [5] * 16, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_plain_and_sliding_attention_are_accepted(family):
    running.check_model(tiny(family), TOKENS)


SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


def a_state_beside_attention():
    """Attention and a state in every layer, and projections like anybody's."""
    config = transformers.FalconH1Config(
        **SMALL,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_n_groups=1,
        mamba_d_state=8,
        mamba_chunk_size=16,
    )
    return transformers.FalconH1ForCausalLM(config)


def a_cache_of_its_own():
    """Full attention in every layer, in a cache of the model's own class."""
    layer_types = ["full_attention"] * 2
    config = transformers.MiniMaxConfig(**SMALL, num_local_experts=2, layer_types=layer_types)
    return transformers.MiniMaxForCausalLM(config)


def a_state_instead_of_attention():
    layer_types = ["linear_attention", "full_attention"]
    config = transformers.Qwen3NextConfig(
        **SMALL,
        layer_types=layer_types,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )
    return transformers.Qwen3NextForCausalLM(config)


def no_cache():
    """A model that looks to both sides."""
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_attention_heads": 4}
    return transformers.BertLMHeadModel(transformers.BertConfig(**sizes, num_hidden_layers=2))


@pytest.mark.parametrize(
    "build, problem",
    [
        (a_state_beside_attention, "LinearAttentionAndFullAttentionLayer"),
        (a_state_instead_of_attention, "LinearAttentionLayer"),
        (a_cache_of_its_own, "MiniMaxCache"),
        (no_cache, "it has none"),
    ],
)
def test_what_is_kept_in_another_way_is_refused_by_its_cache(build, problem):
    with pytest.raises(UserError, match=f"not one of plain or sliding attention .{problem}.*use a"):
        running.check_model(build().eval(), TOKENS)


def test_a_model_that_does_not_run_on_texts_is_one_sentence():
    """A head dimension that its rotary embeddings do not have."""
    model = tiny("Llama")
    model.model.layers[1].self_attn.head_dim = 16
    with pytest.raises(UserError, match="does not run on a short text .RuntimeError.*use a Llama"):
        running.check_model(model, TOKENS)


@pytest.mark.parametrize("family", ["Mistral", "Gemma2", "Gemma3Text"])
def test_a_sliding_window_of_one_is_refused(family):
    running.check_model(tiny(family, sliding_window=2), TOKENS)
    with pytest.raises(UserError, match="a sliding window of 1, behind which nothing is seen"):
        running.check_model(tiny(family, sliding_window=1), TOKENS)


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 16,
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize(
    "family, rope",
    [
        ("Llama", LONGROPE),
        ("Qwen3", LONGROPE),
        ("Gemma3Text", {"full_attention": LONGROPE, "sliding_attention": PLAIN_ROPE}),
        ("Gemma3Text", {"full_attention": PLAIN_ROPE, "sliding_attention": LONGROPE}),
    ],
)
def test_rotary_embeddings_that_depend_on_the_longest_row_are_refused(family, rope):
    with pytest.raises(UserError, match="depend on the longest row of a batch .longrope."):
        running.check_model(tiny(family, rope_parameters=rope), TOKENS)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "yarn"},
        {"rope_type": "linear"},
        {"rope_type": "dynamic"},  # it changes beyond the context only, where prompts never are
        {
            "rope_type": "llama3",
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
    ],
)
@torch.no_grad()
def test_rotary_embeddings_that_do_not_depend_on_other_rows_are_accepted(rope):
    model = tiny("Llama", rope_parameters={"rope_theta": 10000.0, "factor": 2.0, **rope})
    running.check_model(model, TOKENS)
    [long] = random_prompts([508])
    alone = whole_pass(model, TOKENS)
    torch.testing.assert_close(whole_pass(model, TOKENS + long)[:4], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused(value):
    model = tiny("Llama")
    model.model.layers[1].mlp.down_proj.weight.data[3, 4] = value
    with pytest.raises(UserError, match="on a short text are not finite in float32.*fetch them"):
        running.check_model(model, TOKENS)


@pytest.mark.parametrize("module", ["norm", "layers.1.mlp.down_proj", "layers.0.self_attn.o_proj"])
def test_weights_that_overflow_in_float16_are_refused(module):
    """Each weight is a number that float16 has; their products are not."""
    model = tiny("Llama")
    model.model.get_submodule(module).weight.data.fill_(60000)
    running.check_model(model, TOKENS)
    with pytest.raises(UserError, match="not finite in float16.*convert them to bfloat16"):
        running.check_model(model.half(), TOKENS)


def test_the_narrowest_window_is_found():
    assert running.shortest_window(tiny("Qwen3")) == float("inf")
    assert running.shortest_window(tiny("Mistral")) == 8
    assert running.shortest_window(tiny("Gemma3Text")) == 8
    assert running.shortest_window(tiny("Mistral", sliding_window=None)) == float("inf")


def test_peak_memory_is_in_bytes():
    """Of a process that has imported torch: between 50 MB and 1 TB."""
    assert 5e7 < running.peak_memory(torch.device("cpu")) < 1e12


def test_caches_still_have_what_prefixes_are_made_of():
    """The layers' keys and values, and which layers slide: by these a prefix is copied to rows."""
    model = tiny("Gemma3Text")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor([TOKENS]), past_key_values=cache, use_cache=True)
    assert [layer.keys.shape for layer in cache.layers] == [(1, 2, 4, 8)] * 3
    assert [layer.values.shape for layer in cache.layers] == [(1, 2, 4, 8)] * 3
    assert [getattr(layer, "sliding_window", None) for layer in cache.layers] == [8, None, 8]
