"""Tiny multimodal models and a tokenizer of 500 tokens, for tests."""

import tokenizers
import torch
import transformers

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
TEXT = {
    **SIZES,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 500,
    "initializer_range": 0.3,
}
VISION = {**SIZES, "num_hidden_layers": 2, "image_size": 28, "patch_size": 14}


def multimodal(family="Gemma3"):
    """A random model whose image encoder has projections of the same names as its decoder."""
    torch.manual_seed(0)
    if family == "Gemma3":
        config = transformers.Gemma3Config(
            text_config={**TEXT, "sliding_window": 8, "query_pre_attn_scalar": 8},
            vision_config=VISION,
            mm_tokens_per_image=4,
            image_token_id=499,
            boi_token_index=497,
            eoi_token_index=498,
        )
    elif family == "Llava":
        config = transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**TEXT),
            vision_config=transformers.CLIPVisionConfig(**VISION),
            image_token_index=499,
        )
    else:
        config = transformers.Mistral3Config(
            text_config=transformers.MistralConfig(**TEXT),
            vision_config=transformers.PixtralVisionConfig(**VISION),
            image_token_index=499,
        )
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    return model.eval().requires_grad_(False)


def small_tokenizer():
    """Three special tokens and the words w3 to w499; w3 stands for any other word."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2}
    for i in range(3, 500):
        words[f"w{i}"] = i
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
