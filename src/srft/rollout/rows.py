"""The rows of the running batch: which rollout each one is, and what it has sampled so far.

Shape suffixes: A active rows, R rows, M max_tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from srft.rollout.sampling import uniforms
from srft.types import RolloutRequest


@dataclass(frozen=True)
class Ticket:
    """One rollout that waits for a row: sample ``sample`` of request ``request``, whose prompt is
    row ``prompt`` of the present prefill."""

    request: int
    sample: int
    prompt: int


class Rows:
    """Per-row state, dense in rows 0..active.

    ``tokens``, ``logprobs``, ``uniforms`` are [R, M] rings over the clock: what is sampled at clock
    c is in column c % M, for all rows alike, so a step reads and writes one column. No row lives
    longer than M steps.
    """

    def __init__(self, rows: int, max_tokens: int, device: torch.device) -> None:
        self.max_tokens = max_tokens
        self.active = 0
        self.clock = 0
        self.tokens = torch.zeros(rows, max_tokens, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(rows, max_tokens, dtype=torch.float32, device=device)
        self.uniforms = torch.zeros(rows, max_tokens, dtype=torch.float64, device=device)
        # On the host: clock of the first sampled token; most tokens; prompt length; who the row is.
        self.birth = np.zeros(rows, dtype=np.int64)
        self.limit = np.full(rows, max_tokens, dtype=np.int64)
        self.prompt_length = np.zeros(rows, dtype=np.int64)
        self.request = np.zeros(rows, dtype=np.int64)
        self.sample = np.zeros(rows, dtype=np.int64)

    @property
    def column(self) -> int:
        return self.clock % self.max_tokens

    def lengths(self) -> np.ndarray:
        """Keys each active row owns before the token of the present clock is fed, int64 [A]."""
        a = self.active
        return self.prompt_length[:a] + (self.clock - self.birth[:a])

    def full(self) -> np.ndarray:
        """Which rows have sampled as many tokens as they may, bool [A]."""
        a = self.active
        return self.clock - self.birth[:a] + 1 >= self.limit[:a]

    def add(self, tickets: list[Ticket], requests: list[RolloutRequest]) -> slice:
        """Append rows whose first token is sampled at the present clock; returns where they are."""
        new = slice(self.active, self.active + len(tickets))
        self.birth[new] = self.clock
        limits = [requests[t.request].max_tokens or self.max_tokens for t in tickets]
        self.limit[new] = np.minimum(limits, self.max_tokens)
        self.request[new] = [t.request for t in tickets]
        self.sample[new] = [t.sample for t in tickets]
        self.prompt_length[new] = [len(requests[t.request].prompt_ids) for t in tickets]
        drawn = uniforms([requests[t.request].seed + t.sample for t in tickets], self.max_tokens)
        self.uniforms[new] = torch.from_numpy(np.roll(drawn, self.column, axis=1)).to(
            self.uniforms.device
        )
        self.active = new.stop
        return new

    def history(self, which: list[int]) -> list[tuple[list[int], list[float]]]:
        """(token ids, log-probabilities in nats) each of these rows has sampled, oldest first."""
        index = torch.tensor(which, device=self.tokens.device)
        tokens = self.tokens.index_select(0, index).cpu().numpy()
        logprobs = self.logprobs.index_select(0, index).cpu().numpy()
        result = []
        for i, row in enumerate(which):
            columns = np.arange(self.birth[row], self.clock + 1) % self.max_tokens
            result.append((tokens[i, columns].tolist(), logprobs[i, columns].tolist()))
        return result

    def remove(self, finished: list[int]) -> tuple[Tensor, Tensor] | None:
        """Fill the holes with the last rows. Returns (to_row, from_row), or None if none moved."""
        remaining = self.active - len(finished)
        gone = set(finished)
        holes = sorted(row for row in gone if row < remaining)
        movers = [row for row in range(remaining, self.active) if row not in gone]
        assert len(holes) == len(movers)
        self.active = remaining
        if not holes:
            return None
        for host in (self.birth, self.limit, self.prompt_length, self.request, self.sample):
            host[holes] = host[movers]
        to_row = torch.tensor(holes, device=self.tokens.device)
        from_row = torch.tensor(movers, device=self.tokens.device)
        for ring in (self.tokens, self.logprobs, self.uniforms):
            ring.index_copy_(0, to_row, ring.index_select(0, from_row))
        return to_row, from_row
