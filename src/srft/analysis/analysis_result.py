"""What an analysis found, as the page, the tables and analysis.json read it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srft.analysis.dynamics import Dynamics
from srft.analysis.shift import Shift
from srft.runs.files import Record

if TYPE_CHECKING:
    from srft.analysis.gradient import GradientView


@dataclass(frozen=True)
class AnalysisResult:
    """Everything that was found. ``notes``: what a reader must know about how it was scored."""

    models: tuple[str, ...]
    paths: tuple[str, ...]
    data: tuple[str, ...]
    responses: dict[str, int]
    threshold: float
    seed: int
    notes: tuple[str, ...] = ()
    shifts: tuple[Shift, ...] = ()
    dynamics: Dynamics | None = None
    gradient: GradientView | None = None
    out: Path = Path()
    files: tuple[Path, ...] = ()
    browsed: tuple[Record, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """What analysis.json holds: every figure, without the token browser."""
        return {
            k: v
            for k, v in asdict(replace(self, browsed=())).items()
            if k not in ("browsed", "files")
        }
