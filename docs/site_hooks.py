"""What the site does that MkDocs does not: links to files outside of docs/ lead to the repository."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """``[text](../src/x.py)`` becomes a link into ``repo_url``, or its text where none is set."""
    repository = (config.repo_url or "").rstrip("/")

    def outside(match: re.Match[str]) -> str:
        text, path = match.groups()
        return f"[{text}]({repository}/blob/main/{path})" if repository else text

    return re.sub(r"\[([^\]]*)\]\((?:\.\./)+([^)]*)\)", outside, markdown)
