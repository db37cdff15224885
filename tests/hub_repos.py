"""Repositories for the stand-in hub: tiny random models and small data sets, in the files and with
the peculiarities of the real ones.

models()     Qwen3 4B Base, Llama 3.2 1B and a Mistral 7B of somebody's
data_sets()  every data set of the task table, with rows from `samples`
"""

import io
import json

import pyarrow.parquet
import samples
import torch
import transformers
from datasets import ClassLabel, DatasetInfo, Features, List, Value
from datasets.info import DatasetInfosDict
from hub import CONVERTED, Repository
from huggingface_hub import DatasetCardData
from safetensors import torch as safetensors
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import models as tokenizer_models

TINY = "someone/tiny-mistral"
QWEN = "Qwen/Qwen3-4B-Base"
LLAMA = "meta-llama/Llama-3.2-1B"
NEVER = r"original/|\.pth$|\.bin$|consolidated"  # paths that nobody may ask for


def models() -> list[Repository]:
    return [
        Repository(QWEN, {"main": qwen()}),
        Repository(LLAMA, {"main": llama()}, gated=True),
        Repository(TINY, {"main": mistral()}),
    ]


# ---- tokenizers ----------------------------------------------------------------------------------

# Few texts, often seen, so that whole words become tokens: also the labels and names for labels.
WORDS = (
    "negative positive world sports business sci/tech false true zero one two three four five six "
    "seven apple river stone cloud table horse paper green music winter garden silver"
)


def sentences() -> list[str]:
    texts = ["Text: Label: Question: Answer: Choices: Review: Sentiment: Article: Topic:"]
    texts += [f" {word}" for word in WORDS.split()]
    texts += [*samples.GOOD, *samples.BAD, *samples.NEWS]
    return texts * 3


def byte_level(split: str) -> Tokenizer:
    """Byte-level BPE whose words are what the pattern `split` finds."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    return tokenizer


def add_special(tokenizer: Tokenizer, *names: str) -> dict[str, dict]:
    """Add special tokens behind the vocabulary; what tokenizer_config.json says of them."""
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    entries = {}
    for name in names:
        entries[str(tokenizer.token_to_id(name))] = {
            "content": name,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
    return entries


def whole_words(tokenizer: Tokenizer) -> Tokenizer:
    """The vocabulary as SentencePiece has it: special tokens and bytes first, `▁` for a space."""
    trained = json.loads(tokenizer.to_str())["model"]
    names = ["<unk>", "<s>", "</s>"]
    names += [f"<0x{byte:02X}>" for byte in range(256)]
    names += sorted(trained["vocab"], key=trained["vocab"].get)
    vocabulary = {name: i for i, name in enumerate(names)}
    merges = [tuple(pair) for pair in trained["merges"]]
    result = Tokenizer(
        tokenizer_models.BPE(
            vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    result.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    result.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return result


# ---- models --------------------------------------------------------------------------------------

SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,  # more than hidden size / heads, as Qwen3's
}


def as_text(value) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def random_state(config: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """The weights of a random model in bfloat16, by name; a tied head has none of its own."""
    torch.manual_seed(seed)
    settings = {**config, "initializer_range": 0.3}  # so that small models differ visibly
    own = transformers.AutoConfig.for_model(**settings)
    model = transformers.AutoModelForCausalLM.from_config(own).to(torch.bfloat16)
    state = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        del state["lm_head.weight"]
    return state


def one_file(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {"model.safetensors": safetensors.save(state, {"format": "pt"})}


def shards(state: dict[str, torch.Tensor], count: int) -> dict[str, bytes]:
    """The weights in `count` files, and the index that says which is where."""
    names = list(state)
    files = {}
    where = {}
    for i in range(count):
        part = names[i * len(names) // count : (i + 1) * len(names) // count]
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        files[file] = safetensors.save({name: state[name] for name in part}, {"format": "pt"})
        where.update(dict.fromkeys(part, file))
    size = sum(weight.nbytes for weight in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    files["model.safetensors.index.json"] = as_text(index)
    return files


def common(name: str) -> dict[str, bytes]:
    return {
        ".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
        "README.md": f"---\nlicense: other\n---\n\n# {name}\n".encode(),
    }


QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen_config(end, tokenizer) -> dict:
    """The config.json of that repository, tiny."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": end,
        "eos_token_id": end,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "max_window_layers": 2,
        "model_type": "qwen3",
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": tokenizer.get_vocab_size() + 21,
        **SIZE,
    }


def qwen() -> dict[str, bytes]:
    """Qwen3 4B Base: weights in three files, tied embeddings with more rows than there are tokens,
    no token for a beginning, one for an end that is also the pad.
    """
    tokenizer = byte_level(QWEN_SPLIT)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    model = json.loads(tokenizer.to_str())["model"]
    special = add_special(tokenizer, "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    end = tokenizer.token_to_id("<|endoftext|>")
    config = qwen_config(end, tokenizer)
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": special,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    return {
        **common(QWEN),
        **shards(random_state(config), 3),
        "LICENSE": b"Apache License\n",
        "config.json": as_text(config),
        "generation_config.json": as_text(
            {"bos_token_id": end, "do_sample": False, "eos_token_id": end, "max_new_tokens": 2048}
        ),
        "merges.txt": "\n".join(" ".join(pair) for pair in model["merges"]).encode(),
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": as_text(settings),
        "vocab.json": as_text(model["vocab"]),
    }


def llama_config(begin, tokenizer) -> dict:
    """The config.json of that repository, tiny."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": begin,
        "eos_token_id": begin + 1,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0",
        "use_cache": True,
        "vocab_size": tokenizer.get_vocab_size(),
        **SIZE,
    }


LLAMA_EXTRAS = {
    "LICENSE.txt": b"LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n",
    "USE_POLICY.md": b"# Acceptable use\n",
    "original/consolidated.00.pth": b"weights as they were trained",
    "original/params.json": as_text({"dim": 32, "n_layers": 2}),
    "original/tokenizer.model": b"tiktoken",
}


def llama_generation(begin: int) -> dict:
    """The generation_config.json of that repository."""
    return {
        "bos_token_id": begin,
        "do_sample": True,
        "eos_token_id": begin + 1,
        "temperature": 0.6,
        "top_p": 0.9,
    }


def llama() -> dict[str, bytes]:
    """Llama 3.2 1B: gated, tied, scaled rotary embeddings, up to three digits in a token; the
    tokenizer puts <|begin_of_text|> first by itself and has no pad. `original/` has it all again.
    """
    tokenizer = byte_level(LLAMA_SPLIT)
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(4)]
    tokenizer.model.ignore_merges = True  # a word of the vocabulary is taken as it is
    special = add_special(tokenizer, "<|begin_of_text|>", "<|end_of_text|>", *reserved)
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", begin)],
    )
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template]
    )
    config = llama_config(begin, tokenizer)
    settings = {
        "added_tokens_decoder": special,
        "bos_token": "<|begin_of_text|>",
        "clean_up_tokenization_spaces": True,
        "eos_token": "<|end_of_text|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    state = random_state(config)
    return {
        **common(LLAMA),
        **one_file(state),
        **LLAMA_EXTRAS,
        "config.json": as_text(config),
        "generation_config.json": as_text(llama_generation(begin)),
        "special_tokens_map.json": as_text(
            {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
        ),
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": as_text(settings),
    }


def mistral_config(tokenizer) -> dict:
    """The config.json of that repository, tiny."""
    return {
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.34.0.dev0",
        "use_cache": True,
        "vocab_size": tokenizer.get_vocab_size(),
        **SIZE,
        "head_dim": 8,
    }


def mistral(seed: int = 0) -> dict[str, bytes]:
    """A small Mistral of somebody's: an untied head, a `▁` before every text, weights in other
    formats beside the safetensors.
    """
    trained = Tokenizer(tokenizer_models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        sentences(), trainers.BpeTrainer(vocab_size=500, min_frequency=2, show_progress=False)
    )
    tokenizer = whole_words(trained)
    special = add_special(tokenizer, "<unk>", "<s>", "</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    config = mistral_config(tokenizer)
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": special,
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": True,
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": None,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }
    state = random_state(config, seed)
    return {
        **common(TINY),
        **one_file(state),
        "config.json": as_text(config),
        "consolidated.safetensors": safetensors.save({"tok_embeddings.weight": torch.zeros(2, 2)}),
        "pytorch_model-00001-of-00001.bin": b"weights as a pickle",
        "pytorch_model.bin.index.json": as_text({"metadata": {}, "weight_map": {}}),
        "generation_config.json": as_text({"bos_token_id": 1, "eos_token_id": 2}),
        "special_tokens_map.json": as_text({"bos_token": "<s>", "eos_token": "</s>"}),
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": as_text(settings),
    }


# ---- data sets -----------------------------------------------------------------------------------

TEXT = Value("string")
CHOICES = {"text": List(TEXT), "label": List(TEXT)}
SENTIMENT = ClassLabel(names=["negative", "positive"])
TRAIN = range(24)
OTHERS = {"validation": range(100, 108), "test": range(200, 208)}


def fields(**types) -> Features:
    return Features({name: TEXT if kind is None else kind for name, kind in types.items()})


SCHEMES = {
    "sst2": fields(idx=Value("int32"), sentence=None, label=SENTIMENT),
    "finsen": fields(sentence=None, label=ClassLabel(names=["negative", "neutral", "positive"])),
    "poems": fields(
        id=Value("int32"),
        verse_text=None,
        label=ClassLabel(names=["negative", "positive", "no_impact", "mixed"]),
    ),
    "agnews": fields(
        text=None, label=ClassLabel(names=["World", "Sports", "Business", "Sci/Tech"])
    ),
    "bbcnews": fields(text=None, label=Value("int64"), label_text=None),
    "strategyqa": fields(
        qid=None,
        term=None,
        description=None,
        question=None,
        answer=Value("bool"),
        facts=List(TEXT),
        decomposition=List(TEXT),
    ),
    "sciq": fields(
        question=None,
        distractor3=None,
        distractor1=None,
        distractor2=None,
        correct_answer=None,
        support=None,
    ),
    "qasc": fields(
        id=None,
        question=None,
        choices=CHOICES,
        answerKey=None,
        fact1=None,
        fact2=None,
        combinedfact=None,
        formatted_question=None,
    ),
    "arc": fields(id=None, question=None, choices=CHOICES, answerKey=None),
    "gsm8k": fields(question=None, answer=None),
    "gsm8ks": fields(
        id=Value("int64"),
        instance=Value("int64"),
        question=None,
        answer=None,
        original_id=Value("int64"),
        original_question=None,
        original_answer=None,
        canary=None,
    ),
    "hmath_algebra": fields(problem=None, level=None, type=None, solution=None),
}


def rows(name: str, split: str) -> list[dict]:
    """A split's rows; test splits without answers are as the hub has them."""
    numbers = OTHERS.get(split, TRAIN)
    result = [samples.ROWS[name](k) for k in numbers]
    if split == "test" and name == "sst2":
        result = [{**row, "label": -1} for row in result]
    if split == "test" and name == "qasc":
        result = [{**row, "answerKey": ""} for row in result]
    return result


def parquet(name: str, split: str) -> bytes:
    """A split as a parquet file, with the features in its metadata as the hub's files have them."""
    table = pyarrow.Table.from_pylist(rows(name, split), schema=SCHEMES[name].arrow_schema)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


def lines(name: str, split: str) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows(name, split)).encode()


def card(name: str, configs: dict[str, dict[str, str]]) -> bytes:
    """README.md with what `datasets` reads of it: {config: {split: path pattern}}."""
    infos = {}
    entries = []
    for config, files in configs.items():
        infos[config] = DatasetInfo(features=SCHEMES[name], config_name=config)
        patterns = [{"split": split, "path": path} for split, path in files.items()]
        entries.append({"config_name": config, "data_files": patterns})
    content = DatasetCardData(configs=entries)
    DatasetInfosDict(infos).to_dataset_card_data(content)
    return f"---\n{content.to_yaml()}\n---\n\n# {name}\n".encode()


def in_parquet(
    repository: str, name: str, splits: str, configs: dict[str, str] | None = None
) -> Repository:
    """A repository of parquet files, a folder for each configuration."""
    files = {}
    patterns = {}
    for config, folder in (configs or {"default": "data"}).items():
        patterns[config] = {}
        for split in splits.split():
            patterns[config][split] = f"{folder}/{split}-*"
            files[f"{folder}/{split}-00000-of-00001.parquet"] = parquet(name, split)
    files["README.md"] = card(name, patterns)
    files[".gitattributes"] = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"
    return Repository(repository, {"main": files}, "datasets")


def with_script(repository: str, name: str, splits: str, configs: list[str]) -> Repository:
    """A repository with a loading script, which `datasets` no longer runs: the hub's own conversion
    has the rows.
    """
    own = {
        "README.md": f"---\nlicense: other\n---\n\n# {name}\n".encode(),
        f"{repository.partition('/')[2]}.py": b"import datasets\n",
        "data/data.zip": b"PK",
    }
    converted = {".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"}
    for config in configs:
        for split in splits.split():
            converted[f"{config}/{split}/0000.parquet"] = parquet(name, split)
    return Repository(repository, {"main": own, CONVERTED: converted}, "datasets")


def in_lines(repository: str, name: str, files: dict[str, str], configs=None) -> Repository:
    """A repository of JSON lines: {path: split}."""
    content = {path: lines(name, split) for path, split in files.items()}
    readme = f"# {name}\n".encode()
    content["README.md"] = card(name, configs) if configs else readme
    return Repository(repository, {"main": content}, "datasets")


def data_sets() -> list[Repository]:
    three = "train validation test"
    levels = ["main", "p1", "p2"]
    math = ("algebra", "geometry", "number_theory")
    return [
        in_parquet("stanfordnlp/sst2", "sst2", three),
        with_script(
            "takala/financial_phrasebank",
            "finsen",
            "train",
            [f"sentences_{share}agree" for share in ("all", "75", "66", "50")],
        ),
        with_script("google-research-datasets/poem_sentiment", "poems", three, ["default"]),
        in_parquet("fancyzhx/ag_news", "agnews", "train test"),
        in_lines("SetFit/bbc-news", "bbcnews", {"train.jsonl": "train", "test.jsonl": "test"}),
        with_script("wics/strategy-qa", "strategyqa", "test", ["strategyQA"]),
        in_parquet("allenai/sciq", "sciq", three),
        in_parquet("allenai/qasc", "qasc", three),
        in_parquet(
            "allenai/ai2_arc",
            "arc",
            three,
            {"ARC-Challenge": "ARC-Challenge", "ARC-Easy": "ARC-Easy"},
        ),
        in_parquet("openai/gsm8k", "gsm8k", "train test", {"main": "main", "socratic": "socratic"}),
        in_lines(
            "apple/GSM-Symbolic",
            "gsm8ks",
            {f"{level}/test.jsonl": "test" for level in levels},
            {level: {"test": f"{level}/test.jsonl"} for level in levels},
        ),
        in_parquet(
            "EleutherAI/hendrycks_math", "hmath_algebra", "train test", {k: k for k in math}
        ),
    ]
