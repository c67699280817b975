"""The lab's tokenizer: one word is one token, words are separated by a space."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from srft.lab.tasks import ANSWER_MARK, LETTERS, NAMES, OPERATORS, OPTIONS

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
_WORDS = ("more", "less", "than", "times", "has", "is", "in", "dot", "poly", "at", "sum")
_MARKS = ("=", ";", ":", ".", "?", "(", ")", ANSWER_MARK)
VOCABULARY: tuple[str, ...] = (
    *(PAD, EOS, UNK),
    *map(str, range(10)),
    *OPERATORS,
    *_MARKS,
    *_WORDS,
    *LETTERS,
    *("x", "y"),
    *OPTIONS,
    *NAMES,
)
TOKEN_ID: dict[str, int] = {word: i for i, word in enumerate(VOCABULARY)}


def encode(text: str) -> list[int]:
    """Token ids of a text of known words; KeyError on any other (the corpus has none)."""
    return [TOKEN_ID[word] for word in text.split()]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The same vocabulary as a transformers tokenizer; decoding joins words with a space."""
    core = Tokenizer(WordLevel(TOKEN_ID, unk_token=UNK))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
