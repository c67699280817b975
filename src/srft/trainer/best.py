"""The best model so far, after a resume."""

from __future__ import annotations

from srft.trainer.state import TrainState


def resume_best(state: TrainState, measure: str | None) -> None:
    """Forgets a best that is a figure of another ``measure`` than the run's own (of an older checkpoint
    that is not known)."""
    if state.best_of not in (None, measure):
        state.best = state.best_of = None
