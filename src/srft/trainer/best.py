"""The best model so far, after a resume."""

from __future__ import annotations

import shutil

from srft.parallel.world import World
from srft.runs.run_dir import RunDir
from srft.trainer.export import exported_step
from srft.trainer.state import TrainState


def resume_best(state: TrainState, measure: str | None, run: RunDir, world: World) -> str | None:
    """Forgets a best that is a figure of another ``measure`` than the run's own (of an older checkpoint
    that is not known), or whose model gave way to that of a step which the run has not taken yet: that
    one is removed, and what is returned says so."""
    later = world.from_main(lambda: (exported_step(run.best) or 0) > state.step, "the best model")
    if later and world.main:
        shutil.rmtree(run.best)
    if later or state.best_of not in (None, measure):
        state.best = state.best_of = None
    return f"{run.best} held the model of a later step and was removed" if later else None
