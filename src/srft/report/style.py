"""Colours and look of every picture of this package."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PALETTE = {
    "rollout": "#2f6fb7",
    "demonstration": "#d9722e",
    "second": "#3b9b74",
    "third": "#8c62c2",
    "fourth": "#c5475c",
    "fifth": "#b88a17",
    "neutral": "#8a93a0",
    "ink": "#23282f",
    "faint": "#e6e9ee",
}
"""Blue is reinforcement and rollouts, orange is supervision and demonstrations, everywhere."""

CYCLE = [
    PALETTE[name] for name in ("rollout", "demonstration", "second", "third", "fourth", "fifth")
]

_OTHER_SCRIPTS = ("Noto Sans CJK SC", "Noto Sans", "WenQuanYi Zen Hei", "Unifont")

_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans", *_OTHER_SCRIPTS],
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 9,
    "axes.labelcolor": "#5a636e",
    "axes.edgecolor": "#b9c0c9",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9ecf0",
    "grid.linewidth": 0.8,
    "xtick.color": "#5a636e",
    "ytick.color": "#5a636e",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": "#23282f",
    "axes.titlecolor": "#23282f",
    "figure.facecolor": "#ffffff",
    "axes.facecolor": "#ffffff",
    "savefig.facecolor": "#ffffff",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
}


@contextmanager
def style() -> Iterator[None]:
    """The look of every picture of this package; what matplotlib was set to before comes back."""
    import matplotlib

    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    # Inter or Helvetica where installed; a missing font is not worth a warning on every text.
    log.setLevel(logging.ERROR)
    settings: Any = _STYLE
    try:
        with matplotlib.rc_context(settings), warnings.catch_warnings():
            # Names in scripts that no installed font has are drawn as boxes: no word for each letter.
            warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")
            yield
    finally:
        log.setLevel(level)
