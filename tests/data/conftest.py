"""Tokenizers and chat templates made on the spot; nothing is downloaded."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from srft.data.data_config import DataConfig
from srft.data.row_errors import RowError
from srft.data.template import Template
from srft.data.tokenization import tokenize_dataset
from srft.errors import DataError
from srft.types import Example, TokenizedExample

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
DROPS_SYSTEM = (
    "{% for m in messages if m['role'] != 'system' %}"
    "[{{ m['role'] }}] {{ m['content'].strip() }} </s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
THINKS = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
SHOUTS = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | upper }}")

TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "drops_system": DROPS_SYSTEM,
    "thinks": THINKS,
}
TURN_ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "drops_system": "</s>",
    "thinks": "<|im_end|>",
}
CONTROLS = (
    *("<|endoftext|>", "<|begin|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "</s>"),
)
_TEXT = [
    "user assistant system model Be brief. What is 3 + 4? The answer is 7.\n\n#### 7\n",
    "Natalia sold 48 clips, and 24 more in May. How many did she sell altogether?",
]


def make_byte_bpe(template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE as Qwen and Llama 3 have, with the control tokens of all templates."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(_TEXT * 3, trainer)
    core.add_special_tokens([AddedToken(word, normalized=False) for word in CONTROLS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|begin|>",
        eos_token="<|endoftext|>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def make_metaspace_bpe(template: str | None = None) -> PreTrainedTokenizerFast:
    """A SentencePiece-like BPE that marks the beginning of a text, as Llama 2 has."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = [chr(c) for c in range(32, 127)] + ["\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=260,
        initial_alphabet=alphabet,
        special_tokens=["<unk>"],
        show_progress=False,
    )
    core.train_from_iterator(_TEXT * 3, trainer)
    core.add_special_tokens([AddedToken(word, normalized=False) for word in CONTROLS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|begin|>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def make_word_level(template: str | None = None) -> PreTrainedTokenizerFast:
    """One word, one token; the words of the control tokens are in the vocabulary itself."""
    words = ["<pad>", "<eos>", "<unk>", *"0123456789", "+", "=", "####", "?", "x", "[user]"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


_MAKERS = {"bytes": make_byte_bpe, "metaspace": make_metaspace_bpe, "words": make_word_level}


@pytest.fixture(scope="session")
def make_tokenizer():
    """``make_tokenizer("bytes", "chatml")``: a tokenizer with a chat template; kept for reuse."""

    @functools.cache
    def make(kind: str = "bytes", template: str | None = None) -> PreTrainedTokenizerFast:
        return _MAKERS[kind](TEMPLATES.get(template, template))

    return make


@pytest.fixture(scope="session")
def turn_ends() -> dict[str, str]:
    """The token that ends an assistant's turn in each template."""
    return TURN_ENDS


@pytest.fixture(scope="session")
def shouting_template() -> str:
    """A template that rewrites what users say."""
    return SHOUTS


def render_prompt(example: Example, tokenizer: Any, config: DataConfig) -> str:
    """The prompt as the model sees it, as text."""
    try:
        return Template(tokenizer, config).render(example).text
    except RowError as error:
        raise DataError(str(error)) from None


def tokenize_example(
    example: Example, index: int, tokenizer: Any, config: DataConfig
) -> TokenizedExample:
    """One example in tokens."""
    if config.prompt_is_rendered is None:  # one row says nothing of most
        config = config.model_copy(update={"prompt_is_rendered": False})
    (kept,), _ = tokenize_dataset([example], tokenizer, config)
    return replace(kept, index=index)


def stop_token_ids(
    tokenizer: Any, config: DataConfig, generation_config: Any = None
) -> tuple[int, ...]:
    return Template(tokenizer, config).stop_token_ids(generation_config)
