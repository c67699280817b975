"""Models as points by their distances to references in probability space (Fig. 3 of the paper).

A model is the vector of the probabilities it gives to the N response tokens that are scored, each
after the same prompt and the same tokens before it. The distance of two models is the root mean
square of the difference of their vectors:

    d(P, Q) = sqrt( (1 / N) sum_t (P(y_t) - Q(y_t))^2 )         between 0 and 1

The reference called ``demonstrations`` is the vector of ones on demonstration tokens: a model that
gives every one of them probability 1. It is scored on demonstration tokens only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from srft.analysis.distributions import token_logprobs
from srft.analysis.responses import TokenizedResponse
from srft.evaluation.open_model import checkpoints_of, find_model, open_weights, restore
from srft.model.model_config import ModelConfig, holds_model
from srft.runs.reading import Run, group_by_method

DEMONSTRATIONS = "demonstrations"


@dataclass(frozen=True)
class Point:
    """One checkpoint. ``distances``: reference -> distance; ``step`` None for a model without one."""

    step: int | None
    distances: Mapping[str, float]


@dataclass(frozen=True)
class Trajectory:
    """The checkpoints of one run in order, starting from the base at step 0."""

    name: str
    method: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Dynamics:
    """``references``: the axes, the base first. ``between``: distances between references."""

    references: tuple[str, ...]
    tokens: int
    trajectories: tuple[Trajectory, ...]
    between: Mapping[str, Mapping[str, float]]


def distance(p_T: np.ndarray, q_T: np.ndarray) -> float:
    """Root mean square difference of two vectors of token probabilities."""
    return float(np.sqrt(np.mean((p_T - q_T) ** 2))) if len(p_T) else float("nan")


class ProbabilitySpace:
    """Reference vectors, and the distances of further models to them."""

    def __init__(self, references: Mapping[str, np.ndarray], demo_T: np.ndarray) -> None:
        self.references, self._demo_T = dict(references), demo_T
        if demo_T.any():
            self.references.setdefault(DEMONSTRATIONS, np.ones(len(demo_T)))

    def distances(self, probability_T: np.ndarray, of: str | None = None) -> dict[str, float]:
        """Distance to each reference; to and ``of`` the demonstrations on their own tokens."""
        found = {}
        for name, vector in self.references.items():
            here = self._demo_T if DEMONSTRATIONS in (name, of) else slice(None)
            found[name] = distance(probability_T[here], vector[here])
        return found


def learning_dynamics(
    base: tuple[str, np.ndarray],
    references: Mapping[str, np.ndarray],
    runs: Sequence[Run],
    responses: Sequence[TokenizedResponse],
    *,
    device: str = "cpu",
    settings: ModelConfig | None = None,
) -> Dynamics:
    """Scores every checkpoint of ``runs`` on ``responses`` and places it among the references.

    base, references: names with their token probabilities on the same responses. settings: how checkpoints
    are opened, as for ``find_model``.

    Raises:
        CheckpointError, ModelError: a checkpoint that cannot be loaded.
    """
    demo_T = np.concatenate(
        [np.full(len(r.own), r.response.kind == "demonstration") for r in responses]
    )
    space = ProbabilitySpace({base[0]: base[1], **references}, demo_T)
    start = Point(0, space.distances(base[1]))
    trajectories = [
        Trajectory(run.name, name, (start, *_points(run.path, responses, space, device, settings)))
        for name, members in group_by_method(runs).items()
        for run in members
    ]
    return Dynamics(
        references=tuple(space.references),
        tokens=len(demo_T),
        trajectories=tuple(trajectories),
        between={n: space.distances(vector, of=n) for n, vector in space.references.items()},
    )


def _points(
    run: Path,
    responses: Sequence[TokenizedResponse],
    space: ProbabilitySpace,
    device: str,
    settings: ModelConfig | None,
) -> list[Point]:
    points = []
    model = None
    for step, folder in checkpoints_of(run):
        source = find_model(folder, settings)
        if model is None:
            model = open_weights(source, device)
        elif source.weights is not None:
            restore(model, source.weights)
        points.append(Point(step, space.distances(np.exp(token_logprobs(model, responses)))))
    if not points and holds_model(run / "model"):
        final = find_model(run, settings)
        vector = np.exp(token_logprobs(open_weights(final, device), responses))
        points.append(Point(None, space.distances(vector)))
    return points
