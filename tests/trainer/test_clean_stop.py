"""A stop that is asked for during what takes long and can be done again: it is left at once, and the resumed
run does it first."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from tests.faults.runs import fingerprint
from tests.trainer.test_resume import Killed

from srft.runs.files import read_jsonl
from srft.trainer import evaluating
from srft.trainer import trainer as trainer_module
from srft.trainer.api import SRFTTrainer
from srft.trainer.clean_stop import StopRequest


@pytest.fixture
def evaluated(recipe, rows, tmp_path):
    """A run that evaluates before, while and after it trains: ``run()`` is one trainer more; and the outcome
    of the whole of it."""
    config = recipe(
        evaluation={"every_steps": 1, "at_start": True, "best_metric": "eval/mean_tokens"},
        rollout={"group_size": 2, "max_tokens": 4},
        train={"steps": 2, "prompts_per_step": 2},
        run={"samples_every": 1},
    )

    def run(resume: bool = True):
        trainer = SRFTTrainer(args=config, eval_dataset=rows[:2])
        return trainer.train(resume_from_checkpoint=resume)

    run(resume=False)
    whole = fingerprint(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "whole")
    return run, whole


def stopped(name: int = signal.SIGTERM):
    """Asks for a stop, and does not get any further where that is heard."""
    os.kill(os.getpid(), name)
    raise AssertionError("the work went on")


def test_an_evaluation_is_left_and_done_first_by_the_resumed_run(evaluated, tmp_path, monkeypatch):
    """Every one of a run's three evaluations in turn, and a resumed run that is killed in between."""
    run, whole = evaluated
    evaluate = evaluating.evaluate
    for step in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(evaluating, "evaluate", lambda *a, **k: stopped())
            result = run(resume=step > 0)
        assert (result.stopped_by, result.step, result.model_dir) == ("SIGTERM", step, None)
        assert len(read_jsonl(tmp_path / "run/evaluation.jsonl")) == step
        assert (tmp_path / f"run/checkpoints/step_{step:06d}").is_dir()
        done = []

        def once(*args, done=done, **kwargs):
            done.append(1)
            return evaluate(*args, **kwargs) if len(done) == 1 else stopped()

        with monkeypatch.context() as patch:
            patch.setattr(evaluating, "evaluate", dies)
            with pytest.raises(Killed):
                run()
            if step < 2:
                patch.setattr(evaluating, "evaluate", once)
                assert run().step == step + 1
    assert run().step == 2
    assert fingerprint(tmp_path / "run") == whole


def dies(*args, **kwargs):
    raise Killed


def test_an_export_is_left_and_done_by_the_resumed_run(evaluated, tmp_path, monkeypatch):
    run, whole = evaluated
    save = trainer_module.export_model

    def interrupted(policy, folder, *args):
        if folder.name == "model":
            stopped(signal.SIGINT)
        return save(policy, folder, *args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "export_model", interrupted)
        result = run(resume=False)
    assert (result.stopped_by, result.step, result.model_dir) == ("SIGINT", 2, None)
    assert not (tmp_path / "run/model").exists()
    run()
    assert fingerprint(tmp_path / "run") == whole


def test_a_reward_function_that_takes_long_is_not_waited_for(recipe, rows, monkeypatch):
    """An evaluation is judged in a thread of its own, which no signal reaches."""
    began, go_on = threading.Event(), threading.Event()

    def slow(completions, **columns):
        if threading.current_thread() is not threading.main_thread():
            began.set()
            assert go_on.wait(60)
        return [0.0] * len(completions)

    def ask():
        began.wait(60)
        os.kill(os.getpid(), signal.SIGTERM)

    config = recipe(evaluation={"at_start": True}, reward={"failed_demonstrations": "keep"})
    trainer = SRFTTrainer(args=config, reward_funcs=slow, eval_dataset=rows[:3])
    threading.Thread(target=ask, daemon=True).start()
    result = trainer.train()
    assert (result.stopped_by, result.step, go_on.is_set()) == ("SIGTERM", 0, False)
    go_on.set()


def test_what_is_not_to_be_left_is_not_interrupted():
    with StopRequest() as stop:
        assert stop.unless_asked(lambda: 7) == 7
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == "SIGTERM"
        assert stop.unless_asked(lambda: 7) is None
