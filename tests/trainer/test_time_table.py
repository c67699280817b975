"""The time table of a step adds up, and verifiers work while the engine still generates."""

from __future__ import annotations

import time

import pytest

from srft.rewards.scorer import Scorer
from srft.trainer.api import SRFTTrainer

PHASES = ("time/generate", "time/score", "time/train", "time/sync", "time/other")


def test_phases_add_up_to_the_step_and_steps_to_the_run(recipe, monkeypatch) -> None:
    trainer = SRFTTrainer(args=recipe(train={"steps": 3}))
    outside: list[float] = []
    inside = trainer._train_step
    rows: list[dict] = []

    def watched() -> dict:
        start = time.perf_counter()
        rows.append(inside())
        outside.append(time.perf_counter() - start)
        return rows[-1]

    monkeypatch.setattr(trainer, "_train_step", watched)
    trainer.train()
    assert len(rows) == 3
    for row, wall in zip(rows, outside, strict=True):
        assert all(row[phase] >= 0 for phase in PHASES)
        assert sum(row[phase] for phase in PHASES) == pytest.approx(row["time/step"], abs=1e-9)
        assert row["time/step"] <= wall
        # What a step is for takes most of it.
        assert row["time/generate"] + row["time/train"] > 0.5 * row["time/step"]
    assert rows[-1]["total/seconds"] == pytest.approx(sum(r["time/step"] for r in rows))


def test_rollouts_are_verified_while_others_are_generated(recipe, monkeypatch) -> None:
    """The engine hands out its first rollout and will not go on until that one is verified."""
    trainer = SRFTTrainer(args=recipe(train={"steps": 1}, reward="math"))
    engine = trainer.setup.engine
    generate, open_session = engine.generate, Scorer.session
    sessions: list = []
    waited: list[bool] = []

    def session(scorer: Scorer) -> object:
        sessions.append(open_session(scorer))
        return sessions[-1]

    def patient(requests, params, on_completion):
        def hand_out(r, i, completion) -> None:
            on_completion(r, i, completion)
            if not waited:
                until = time.monotonic() + 60
                (verdicts,) = sessions[-1]._verdicts.values()
                while time.monotonic() < until and not all(v.done() for v in verdicts.values()):
                    time.sleep(0.01)
                waited.append(bool(verdicts) and all(v.done() for v in verdicts.values()))

        return generate(requests, params, hand_out)

    monkeypatch.setattr(Scorer, "session", session)
    monkeypatch.setattr(engine, "generate", patient)
    trainer.train()
    assert waited == [True]
