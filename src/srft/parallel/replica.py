"""Sampling from a sharded policy: a whole copy of its weights in every process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from srft.parallel.sharding import full_tensors
from srft.types import Completion, RolloutEngine, RolloutRequest, SamplingParams


class ReplicaEngine:
    """``RolloutEngine`` over ``engine``, whose model is ``replica``: as many weights as the policy
    whole. Gathering a sharded policy for every decoded token instead would move all weights that
    often, and would have the processes decode in step. The weights are the policy's to the bit."""

    def __init__(self, engine: RolloutEngine, replica: nn.Module, policy: nn.Module) -> None:
        self.engine, self.replica, self.policy = engine, replica, policy

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_completion: Callable[[int, int, Completion], None] | None = None,
    ) -> list[list[Completion]]:
        return self.engine.generate(requests, params, on_completion)

    @torch.no_grad()
    def update_weights(self) -> None:
        copies = self.replica.state_dict()  # the replica's own memory
        for name, tensor in full_tensors(self.policy):
            copies[name].copy_(tensor)
        self.engine.update_weights()

    def close(self) -> None:
        self.engine.close()
