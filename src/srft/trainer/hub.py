"""A model folder to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from srft.errors import ConfigError, did_you_mean

_SETTINGS = ("repo_id", "private", "revision", "dataset_name", "tags")


def push(
    folder: Path,
    name: str,
    commit_message: str,
    token: str | None,
    arguments: Any,
    settings: Mapping[str, Any],
) -> str:
    """Uploads ``folder`` and returns the address of the commit. ``arguments``: a TrainingArguments whose
    ``hub_*`` fields stand in for what ``settings`` leave out, or None.

    Raises:
        ConfigError: an unknown setting, or the hub refuses it or cannot be reached.
    """
    for key in settings.keys() - set(_SETTINGS):
        known = f"; there are {', '.join(_SETTINGS)}"
        raise ConfigError(
            f"push_to_hub: unknown setting {key!r}{did_you_mean(key, _SETTINGS, known)}"
        )
    token = token or getattr(arguments, "hub_token", None)
    repo = settings.get("repo_id") or name
    private = settings.get("private", getattr(arguments, "hub_private_repo", None))
    revision = settings.get("revision", getattr(arguments, "hub_revision", None))
    tags = settings.get("tags") or ()
    _tell_in_card(
        folder / "README.md",
        settings.get("dataset_name"),
        [tags] if isinstance(tags, str) else tags,
    )
    api = HfApi(token=token, library_name="srft")
    try:
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=commit_message, revision=revision
        )
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        raise ConfigError(
            f"push_to_hub: {repo} was not uploaded: {error}. Log in with `hf auth login`, or give a token "
            "that may write there; the model itself is on the disk (save_model)"
        ) from error
    return str(commit.commit_url)


def _tell_in_card(card: Path, dataset: str | None, tags: Any) -> None:
    """The data's name and further tags, in the card's head."""
    more = [f"datasets: [{dataset}]"] if dataset else []
    text = card.read_text(encoding="utf-8")
    if tags:
        text = text.replace("tags: [srft, ", f"tags: [srft, {', '.join(tags)}, ", 1)
    if more:
        text = text.replace("---\n", "---\n" + "\n".join(more) + "\n", 1)
    card.write_text(text, encoding="utf-8")
