"""pytest tests/engine/test_peft_files.py: adapters on disk, in both directions against PEFT; what
is refused, and why.
"""

import json

import pytest
import torch
from conftest import random_prompts, randomise, tiny
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from small import multimodal

import lora
from engine import peft_files
from support.cli import UserError

TOKENS = torch.tensor(random_prompts([14]))
WEIGHTS = "adapter_model.safetensors"


@torch.no_grad()
def logits(model):
    return model(TOKENS, use_cache=False).logits


def saved_by_peft(path, model=None, **options):
    """Save a random adapter by PEFT into `path`; the model that it made."""
    torch.manual_seed(1)
    options = {
        "target_modules": ["q_proj", "k_proj", "o_proj"],
        "init_lora_weights": False,
        **options,
    }
    theirs = get_peft_model(model or tiny("Qwen3"), LoraConfig(**options))
    theirs.eval().save_pretrained(path)
    return theirs


def read_config(path):
    return json.loads((path / "adapter_config.json").read_text())


def change_config(path, **changes):
    """Change settings of a saved adapter; None takes one away."""
    config = {**read_config(path), **changes}
    kept = {key: value for key, value in config.items() if value is not None}
    (path / "adapter_config.json").write_text(json.dumps(kept))


def change_weights(path, change):
    """Put change(state) in place of a saved adapter's weights."""
    state = {}
    for key, weight in change(load_file(path / WEIGHTS)).items():
        state[key] = weight.contiguous()
    save_file(state, path / WEIGHTS)


def assert_loads_as(theirs, path, model=None):
    """What PEFT's model says is what ours says with the adapter of `path`."""
    model = model or tiny("Qwen3")
    peft_files.load(model, path)
    torch.testing.assert_close(logits(model), logits(theirs), atol=1e-4, rtol=1e-4)


# ---- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
def test_peft_loads_what_is_saved_here(family, tmp_path):
    model = tiny(family)
    lora.add(model, rank=4, alpha=12)
    randomise(model)
    peft_files.save(model, tmp_path)
    theirs = PeftModel.from_pretrained(tiny(family), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-4, rtol=1e-4)


def test_saving_and_loading_is_exact(tiny_model, tmp_path, request):
    lora.add(tiny_model, rank=3, alpha=7)
    randomise(tiny_model)
    peft_files.save(tiny_model, tmp_path)
    other = tiny(request.node.callspec.params["tiny_model"])
    peft_files.load(other, tmp_path)
    assert {layer.scale for layer in lora.layers(other).values()} == {7 / 3}
    saved = lora.state(tiny_model)
    for name, weight in lora.state(other).items():
        assert torch.equal(weight, saved[name])
    assert read_config(tmp_path)["target_modules"] == ["k_proj", "o_proj", "q_proj"]


def test_an_adapter_says_which_model_it_is_for(tiny_model, tmp_path):
    tiny_model.name_or_path = "owner/name"
    lora.add(tiny_model)
    peft_files.save(tiny_model, tmp_path)
    assert read_config(tmp_path)["base_model_name_or_path"] == "owner/name"


@pytest.mark.parametrize(
    "options",
    [
        {"r": 8, "lora_alpha": 8},
        {"r": 4, "lora_alpha": 10, "use_rslora": True},
        {"r": 2, "target_modules": ["q_proj", "v_proj", "up_proj"]},
        {"r": 2, "target_modules": r".*layers\.[01]\..*(q_proj|down_proj)"},
        {"r": 3, "target_modules": ["q_proj", "lm_head"]},
        {"r": 2, "init_lora_weights": True},
        {"r": 2, "init_lora_weights": "gaussian"},
        {"r": 2, "init_lora_weights": "orthogonal"},
        {"r": 2, "lora_dropout": 0.1},
        {"r": 2, "layers_to_transform": [0, 2]},
        {"r": 2, "layers_to_transform": 1, "layers_pattern": "layers"},
        {"r": 2, "exclude_modules": ["model.layers.1.self_attn.q_proj"]},
        {"r": 2, "exclude_modules": r".*layers\.0\..*"},
    ],
)
def test_what_peft_saves_loads_here(options, tmp_path):
    theirs = saved_by_peft(tmp_path, **options)
    # A fresh B of zero would make every adapter alike.
    for name, weight in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    theirs.save_pretrained(tmp_path)
    assert_loads_as(theirs, tmp_path)


def test_an_eva_adapter_loads(tmp_path):
    """EVA draws A from data, which PEFT asks for when it makes one; the file is like any other."""
    theirs = saved_by_peft(tmp_path)
    change_config(tmp_path, init_lora_weights="eva", eva_config={"rho": 2.0})
    assert_loads_as(theirs, tmp_path)


def test_a_float32_adapter_on_a_bfloat16_model_is_as_near_to_float32_as_that_of_peft(tmp_path):
    exact = tiny("Llama")
    lora.add(exact)
    randomise(exact)
    peft_files.save(exact, tmp_path)
    ours = tiny("Llama", torch.bfloat16)
    peft_files.load(ours, tmp_path)
    theirs = PeftModel.from_pretrained(tiny("Llama", torch.bfloat16), tmp_path)
    assert {weight.dtype for weight in lora.weights(ours).values()} == {torch.float32}
    our_error = (logits(ours).float() - logits(exact)).abs().mean().item()
    their_error = (logits(theirs).float() - logits(exact)).abs().mean().item()
    assert 0 < our_error < 1.5 * their_error


@pytest.mark.parametrize("drop", [["r"], ["lora_alpha"], ["r", "lora_alpha"]])
def test_a_missing_r_or_alpha_is_the_8_of_peft(drop, tmp_path):
    theirs = saved_by_peft(tmp_path, r=8, lora_alpha=8)
    change_config(tmp_path, **dict.fromkeys(drop))
    assert_loads_as(theirs, tmp_path)


def test_keys_with_the_name_of_an_adapter_in_them_load(tmp_path):
    theirs = saved_by_peft(tmp_path)
    change_weights(
        tmp_path,
        lambda state: {key.replace(".weight", ".default.weight"): w for key, w in state.items()},
    )
    assert_loads_as(theirs, tmp_path)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        torch.float16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.float8_e4m3fnuz,
    ],
)
def test_weights_of_fewer_bits_are_read_as_float32(dtype, tmp_path):
    saved_by_peft(tmp_path)
    exact = load_file(tmp_path / WEIGHTS)
    change_weights(tmp_path, lambda state: {key: w.to(dtype) for key, w in state.items()})
    model = tiny("Qwen3")
    peft_files.load(model, tmp_path)
    for name, weight in lora.weights(model).items():
        expected = exact[peft_files.PREFIX + name].to(dtype).float()
        assert weight.dtype == torch.float32
        assert torch.equal(weight, expected)


# ---- models with several towers ------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Gemma3", "Llava", "Mistral3"])
def test_an_adapter_of_a_multimodal_model_is_loaded_again_by_us_and_by_peft(family, tmp_path):
    model = multimodal(family)
    before = logits(model)
    lora.add(model)
    randomise(model)
    peft_files.save(model, tmp_path)
    targets = read_config(tmp_path)["target_modules"]
    assert len(targets) == 9
    assert all("language_model.layers." in name for name in targets)
    other = multimodal(family)
    peft_files.load(other, tmp_path)
    assert torch.equal(logits(other), logits(model))
    assert not torch.allclose(logits(other), before, atol=1e-3)
    theirs = PeftModel.from_pretrained(multimodal(family), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-4, rtol=1e-4)


# ---- refused: more than LoRA ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"init_lora_weights": "olora"}, "init_lora_weights=olora"),
        ({"init_lora_weights": "corda"}, "init_lora_weights=corda"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights=loftq"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights=lora_ga"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens="),
        ({"bias": "all"}, "bias=all"),
        ({"bias": "lora_only"}, "bias=lora_only"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"use_dora": True}, "use_dora=True"),
        ({"use_qalora": True}, "use_qalora=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern="),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern="),
        ({"layer_replication": [[0, 2]]}, "layer_replication="),
        ({"target_parameters": ["experts.up"]}, "target_parameters="),
        ({"trainable_token_indices": [5]}, "trainable_token_indices="),
        ({"peft_type": "IA3"}, "peft_type=IA3"),
    ],
)
def test_what_is_more_than_plain_lora_is_refused_with_the_reason(change, reason, tmp_path):
    saved_by_peft(tmp_path)
    change_config(tmp_path, **change)
    with pytest.raises(UserError, match=f"more than LoRA .*{reason}.*merge it with PEFT"):
        peft_files.load(tiny("Qwen3"), tmp_path)


# ---- refused: files that are not whole -----------------------------------------------------------


@pytest.mark.parametrize("content", ["[1, 2]", "3", '"x"', "{broken", "", '{"r": 8}'])
def test_a_config_that_is_no_json_object_of_loras_is_refused(content, tmp_path):
    saved_by_peft(tmp_path)
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match="cannot be read .*give adapter_config.json, an object"):
        peft_files.load(tiny("Qwen3"), tmp_path)


@pytest.mark.parametrize(
    "key, value",
    [
        ("target_modules", "null"),
        ("target_modules", "3"),
        ("target_modules", '["q_proj", 3]'),
        ("target_modules", '"(q_proj"'),
        ("lora_alpha", "null"),
        ("lora_alpha", '"16"'),
        ("lora_alpha", "NaN"),
        ("lora_alpha", "Infinity"),
        ("lora_alpha", "1e40"),
        ("lora_alpha", "true"),
        ("r", "null"),
        ("r", '"8"'),
        ("r", "0"),
        ("r", "-8"),
        ("r", "8.5"),
        ("r", "NaN"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(key, value, tmp_path):
    saved_by_peft(tmp_path)
    config = read_config(tmp_path)
    del config[key]
    rest = json.dumps(config).removeprefix("{")
    (tmp_path / "adapter_config.json").write_text(f'{{"{key}": {value}, {rest}')
    with pytest.raises(UserError, match=f"{key} is .* in adapter_config.json instead of.*correct"):
        peft_files.load(tiny("Qwen3"), tmp_path)


def test_folders_that_hold_no_adapter_or_only_a_bin_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        peft_files.load(tiny("Qwen3"), tmp_path)
    saved_by_peft(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model.safetensors .*PEFT can save a .bin as"):
        peft_files.load(tiny("Qwen3"), tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read"):
        peft_files.load(tiny("Qwen3"), tmp_path)


LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "name, change, reason",
    [
        ("no weights at all", lambda state: {}, "missing or not finite, instead of"),
        ("other weights only", lambda state: {"x.weight": torch.ones(2)}, "is missing"),
        (
            "one layer less",
            lambda state: {k: w for k, w in state.items() if "layers.1.self_attn.k_proj" not in k},
            "layers.1.self_attn.k_proj.lora_A.weight is missing",
        ),
        (
            "an A without its B",
            lambda state: {k: w for k, w in state.items() if k != f"{LAYER}.lora_B.weight"},
            "q_proj.lora_B.weight is missing",
        ),
        (
            "one weight more",
            lambda state: {**state, "base_model.model.lm_head.weight": torch.ones(2, 2)},
            "lm_head.weight is",
        ),
        (
            "an adapter of a module that is no target",
            lambda state: {**state, f"{LAYER[:-6]}v_proj.lora_A.weight": torch.ones(8, 32)},
            "v_proj.lora_A.weight is",
        ),
        (
            "a bias",
            lambda state: {**state, f"{LAYER}.lora_B.bias": torch.ones(2)},
            "lora_B.bias",
        ),
        (
            "size 0, as ZeRO-3 leaves them",
            lambda state: {k: torch.empty(0) for k in state},
            r"\(0,\) .*ZeRO-3",
        ),
        ("nan", lambda state: {k: w * float("nan") for k, w in state.items()}, "not finite"),
        (
            "one infinity",
            lambda state: {k: w / (0 if "layers.2" in k else 1) for k, w in state.items()},
            "not finite",
        ),
        (
            "another rank",
            lambda state: {k: w[:4] if "lora_A" in k else w[:, :4] for k, w in state.items()},
            r"\(4, 32\)",
        ),
    ],
)
def test_a_file_that_is_not_whole_is_refused(name, change, reason, tmp_path):
    saved_by_peft(tmp_path)
    change_weights(tmp_path, change)
    with pytest.raises(UserError, match=f"does not fit: .*{reason}"):
        peft_files.load(tiny("Qwen3"), tmp_path)


def test_where_only_some_modules_are_targets_an_a_without_its_b_is_still_refused(tmp_path):
    saved_by_peft(tmp_path, layers_to_transform=[0, 2])
    change_weights(
        tmp_path,
        lambda state: {k: w for k, w in state.items() if k != f"{LAYER}.lora_B.weight"},
    )
    with pytest.raises(UserError, match="does not fit: .*q_proj.lora_B.weight is missing"):
        peft_files.load(tiny("Qwen3"), tmp_path)


def test_whole_numbers_are_no_adapter(tmp_path):
    """Quantised weights mean nothing without their scales."""
    saved_by_peft(tmp_path)
    change_weights(tmp_path, lambda state: {k: w.to(torch.int8) for k, w in state.items()})
    with pytest.raises(UserError, match="cannot be read .*is of type torch.int8"):
        peft_files.load(tiny("Qwen3"), tmp_path)


# ---- refused: what does not fit the model --------------------------------------------------------


def test_another_model_or_a_second_adapter_is_refused(tmp_path):
    saved_by_peft(tmp_path)
    with pytest.raises(UserError, match="does not fit: .*use its own model"):
        peft_files.load(tiny("Qwen3", hidden_size=64), tmp_path)
    model = tiny("Qwen3")
    peft_files.load(model, tmp_path)
    with pytest.raises(UserError, match="has an adapter already; load it again"):
        peft_files.load(model, tmp_path)


@pytest.mark.parametrize("letters", ["AB", "B"])
@pytest.mark.parametrize("value", [3e38, 1e37])
def test_an_adapter_too_large_for_float32_is_refused_and_the_model_is_as_it_was(
    letters, value, tmp_path
):
    """Each weight is finite; their products, the squares of these or the outputs are not."""
    saved_by_peft(tmp_path)

    def enlarge(state):
        enlarged = {}
        for key, weight in state.items():
            is_large = any(f"lora_{letter}" in key for letter in letters)
            enlarged[key] = torch.full_like(weight, value) if is_large else weight
        return enlarged

    change_weights(tmp_path, enlarge)
    model = tiny("Qwen3")
    before = logits(model)
    with pytest.raises(UserError, match="cannot be used: .*not finite.*it has diverged: train it"):
        peft_files.load(model, tmp_path)
    assert torch.equal(logits(model), before)
    assert not lora.layers(model)


def test_an_adapter_on_a_tied_head_is_loaded_and_not_merged(tmp_path):
    saved_by_peft(tmp_path, tiny("Llama"), target_modules=["q_proj", "lm_head"])
    model = tiny("Llama")
    peft_files.load(model, tmp_path)
    with pytest.raises(lora.LoRAError, match="tied to the input embeddings"):
        lora.merge(model)
