"""Secrets stay out of what is written: logs, recipes, reports, model cards, error messages.

A secret is the value of an environment variable or a setting whose name says so (``HF_TOKEN``,
``PGPASSWORD``, ``clientSecret``), the user part of a URL, or a text of a well-known shape (``hf_...``,
``sk-...``, a JSON Web Token, a private key) whatever it is called, or a variable that is one long random
number. It is replaced by a word that says what stood there.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from typing import Any

# Inside a name, its words run together: PGPASSWORD, CLIENTSECRET, aws_access_key_id.
_INSIDE = re.compile(
    r"passw(?:or)?d|passphrase|passcode|secret|credential|(?:api|access|private|signing|encryption)keys?"
    r"|(?:auth|access|refresh|bearer|session|api|csrf)tokens?|webhook|connectionstring|mnemonic"
    r"|(?:licen[cs]e|deploy|ssh|gpg|pgp|hmac|aes|crypt|service|account|storage|master|shared|host)keys?"
)
_WORD = re.compile(
    r"\w*tokens?|auth|authorization|bearer|jwt|creds?|cookies?|psk|t?otp|\w{2,}pwd(?<!oldpwd)"
    r"|\w{2,}pass(?<!bypass)(?<!compass)(?<!surpass)(?<!trespass)(?<!overpass)(?<!underpass)"
)
_LAST_WORDS = frozenset(
    ("key", "keys", "pass", "pwd", "pw", "pat")
)  # behind another: DB_PASS, GH_PAT
# Tokens of a language model: max_tokens, eos_token, stop_token_ids, tokens_per_micro_batch.
_OF_TEXT = re.compile(
    "max|min|mean|median|n|num|total|new|per|count|budget|limit|batched|cache|prefill|prompt|completion|response|"
    "demonstration|generated|input|output|entropy|reasoning|thinking|stop|start|end|pad|[ebu]os|unk|sep|cls|mask|"
    "special|image"
)
_SHAPES = re.compile(
    r"\b(?:(?:hf|api_org|npm|gsk|r8|lin_api|do[opr]_v1|gh[pousr]|[srp]k_(?:live|test)|shp(?:at|ss|ca)|rdme|sbp"
    r"|gls[ac]|tgp_v1|figd|ntn|secret|fw|sgp|ops|cio|whsec)_[A-Za-z0-9_-]{16,}(?<=[A-Za-z0-9]{16})"
    r"|(?:github_pat_|dckr_pat_|gl(?:pat|rt|dt|cbt|ptt|soat|agent)-|nvapi-|pypi-Ag|sk-|GOCSPX-|xai-|pplx-|csk-|tskey-"
    r"|hv[sbr]\.|PMAK-|NRAK-|ATATT3|ATCTT3|pul-|sq0[a-z]{3}-|EAAA|dp\.[a-z]{2,5}\.)[\w-]{16,}"
    r"|xox[a-z]-[A-Za-z0-9-]{10,}|[MNO][\w-]{22,27}\.[\w-]{6}\.[\w-]{27,}|\w{14}\.atlasv1\.[\w-]{40,}"
    r"|xapp-\d-[A-Z0-9]+-[\w-]{10,}|dapi[0-9a-f]{32}|\d{8,10}:AA[\w-]{30,}|AGE-SECRET-KEY-1[0-9A-Z]{40,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{30,}|ya29\.[\w-]{20,}|SG\.[\w-]{16,}\.[\w-]{16,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
    r"|hooks\.slack\.com/services/[\w/]+|/api/webhooks/\d+/[\w-]{16,}"
    r"|(?i:authorization\W{1,4}basic|bearer) [\w.~+/-]{16,}=*)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
# One long random number, unless the variable that holds it is called after a commit, a digest or an id.
_RANDOM = re.compile(r"(?=\w*[0-9])(?=\w*[A-Za-z])(?:[0-9a-f]{32,}|[0-9A-F]{32,}|[A-Za-z0-9]{40,})")
_OF_CONTENT = re.compile(
    r"sha\d*|commit|rev|revision|git|hash|digest|checksum|md5|id|ids|uuid|guid|ref|version|trace\w*"
)
_URL_USER = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
_QUERY = re.compile(
    r"([?&](?:[\w-]*_)?(?:token|key|secret|password|signature|sig|auth)=)[^&\s'\"]+", re.I
)
# name=value, and "name": value where the name can mean nothing else.
_ASSIGNMENT = re.compile(
    r"""(?<![\w.-])((?:[\w-]+\.)*[\w-]+)(['"]?\s?[=:]\s?['"]?)(?=[^\s'",}<])"""
)
_VALUE = re.compile(r"""[^\s'",}]+""")
_SHORTEST = 6
"""Shorter values are words that stand in any text; replacing them would blot out half of a log."""
_FOR_VERIFIERS = frozenset(
    ("PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
     "DYLD_FALLBACK_LIBRARY_PATH")
)  # fmt: skip


@functools.lru_cache(4096)
def is_secret_name(name: str) -> bool:
    """Whether a variable or a setting of this name holds a secret."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("-", "_").split("_")
    if _INSIDE.search("".join(words)):
        return True
    if any(map(_WORD.fullmatch, words)):
        ids = words == ["tokens"] or words[-1] in ("id", "ids")
        return not ids and not any(map(_OF_TEXT.fullmatch, words))
    return len(words) > 1 and words[-1] in _LAST_WORDS and "public" not in words


def _is_random(name: str, value: str) -> bool:
    words = name.lower().split("_")
    return bool(_RANDOM.fullmatch(value)) and not any(map(_OF_CONTENT.fullmatch, words))


def for_verifiers(environment: Mapping[str, str]) -> dict[str, str]:
    """Of an environment what a process needs to find its libraries, and nothing else."""
    return {
        name: value
        for name, value in environment.items()
        if name in _FOR_VERIFIERS or name.startswith("LC_")
    }


def redact(text: str) -> str:
    """``text`` with every secret replaced."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and (is_secret_name(name) or _is_random(name, value)):
            text = text.replace(value, f"<{name}>")
    text = _SHAPES.sub("<secret>", text)
    text = _URL_USER.sub("<secret>", text)
    text = _QUERY.sub(r"\1<secret>", text)
    return _assignments(text)


def redact_values(values: Any, key: str = "") -> Any:
    """Plain data (dicts, lists, texts) with every secret replaced, also by the names of its keys."""
    if isinstance(values, Mapping):
        secret = is_secret_name(key)
        return {n: redact_values(value, key if secret else str(n)) for n, value in values.items()}
    if isinstance(values, list | tuple):
        return [redact_values(value, key) for value in values]
    if is_secret_name(key) and values and not isinstance(values, bool):
        return "<secret>"
    return redact(values) if isinstance(values, str) else values


def _assignments(text: str) -> str:
    """Values behind names of secrets. Any other value is looked into: Endpoint=https;AccountKey=..."""
    parts, done = [], 0
    for match in _ASSIGNMENT.finditer(text):
        name, between = match[1].rpartition(".")[2], match[2]
        if match.start() < done or not is_secret_name(name):
            continue
        if ":" in between and not _INSIDE.search(re.sub("[_-]", "", name.lower())):
            continue  # "unexpected token: ..."
        value = _VALUE.match(text, match.end())
        assert value is not None
        parts += [text[done : match.end()], "<secret>"]
        done = value.end()
    return "".join([*parts, text[done:]])
