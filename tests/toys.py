"""Toy models, tokenizers, examples and data for every test: made on the spot, nothing downloaded.

from tests.toys import tiny_model, byte_tokenizer
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.lab.tokenizer import build_tokenizer as lab_tokenizer
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from srft.types import TrainingSequence

VOCABULARY = 61
WINDOW = 6
"""Of the families with sliding windows, in tokens."""

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Larger than usual, so that a wrong mask or scale moves log-probabilities visibly.
    "initializer_range": 0.3,
    "attention_dropout": 0.0,
}
# What each family adds to the common sizes, and the trick of its forward pass it stands for.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"tie_word_embeddings": True},  # tied head, norms on queries and keys
    "mistral": {"sliding_window": WINDOW},
    "gemma2": {  # soft caps on attention and logits, every other layer windowed
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "cohere": {"logit_scale": 0.25},  # logits multiplied
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.3},  # logits divided
    "phi": {},  # bias in the head
    "stablelm": {},  # drops unknown keywords before attention
    "gpt_oss": {"num_local_experts": 4, "sliding_window": WINDOW},  # attention sinks
    "gpt2": {},  # learned positions, biases
    "mamba": {"state_size": 4},  # no attention at all
}
# Families whose configuration names fewer sizes.
_OWN_SIZES = {
    "gpt2": (*("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
             *("max_position_embeddings", "eos_token_id", "initializer_range")),
    "mamba": ("vocab_size", "hidden_size", "num_hidden_layers", "eos_token_id"),
}  # fmt: skip


def tiny_model(
    family: str = "qwen3", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> PreTrainedModel:
    """A random model of some 20,000 parameters, in evaluation mode; ``changes`` go to its config."""
    torch.manual_seed(seed)
    known = _OWN_SIZES.get(family, SIZES)
    sizes = {name: SIZES[name] for name in known}
    config = CONFIG_MAPPING[family](**{**sizes, **FAMILIES.get(family, {}), **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "sinks")):
                parameter.normal_(0.0, 0.3)
    return model.eval()


def lab_model(family: str = "qwen3", **changes: Any) -> PreTrainedModel:
    """A tiny model over the lab's vocabulary, so that it can be trained and asked."""
    tokenizer = lab_tokenizer()
    own = {"vocab_size": len(tokenizer), "max_position_embeddings": 256, "bos_token_id": None}
    own |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return tiny_model(family, **{**own, **changes})


def save_lab_model(folder: Path, family: str = "qwen3", **changes: Any) -> Path:
    """The folder, with a tiny model and the lab's tokenizer in it."""
    lab_model(family, **changes).save_pretrained(folder)
    lab_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, and the merged tokens "he" and "ll", so that strings span tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<eos>", *letters, "he", "ll"]
    core = Tokenizer(
        BPE({w: i for i, w in enumerate(words)}, [("h", "e"), ("l", "l")], unk_token=None)
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def word_tokenizer(size: int = VOCABULARY, **special: str) -> PreTrainedTokenizerFast:
    """``size`` words, each a token; ``special`` names the special ones."""
    words = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(size - 3))]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def random_sequences(*lengths: tuple[int, int], seed: int = 0) -> list[TrainingSequence]:
    """One sequence for each (prompt, response) length; demonstrations alternate with rollouts."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(VOCABULARY, (count,), generator=draw).tolist())

    return [
        TrainingSequence(
            tokens(p), tokens(r), group=k // 2, is_demo=k % 2 == 0, reward=float(k), correct=k > 0
        )
        for k, (p, r) in enumerate(lengths)
    ]


def real_data_dir() -> Path:
    """The folder with GSM8K and the benchmarks; the test is skipped where it is absent."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SRFT_DATA_DIR", beside))
    if not (folder / "gsm8k" / "test.jsonl").is_file():
        pytest.skip(f"real data not found at {folder}; set SRFT_DATA_DIR")
    return folder


HERMES = (
    "{% if tools %}<|im_start|>system\nTools:{% for t in tools %} {{ t | tojson }}{% endfor %}<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
    "{% for c in m.get('tool_calls') or [] %}<tool_call>\n{{ c['function'] | tojson }}\n</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tool_model(folder: Path) -> Path:
    """A model of random weights whose chat template knows tools, with its tokenizer, in ``folder``."""
    from tests.data.conftest import make_byte_bpe

    tokenizer = make_byte_bpe(HERMES)
    sizes = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 2048}
    sizes |= {"eos_token_id": tokenizer.eos_token_id, "hidden_size": 16, "num_attention_heads": 2}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
