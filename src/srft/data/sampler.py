"""Which prompts come next: endless, seeded, and able to go on where it stopped."""

from __future__ import annotations

import random
from typing import Any

from srft.errors import DataError


class PromptSampler:
    """Draws row numbers ``0 .. n - 1`` in batches, epoch after epoch.

    Every epoch is a permutation of all rows, a function of ``(seed, epoch)``. The last batch of an
    epoch is filled from the next one; the rows it already holds are moved behind that batch, so
    that no prompt is in a batch twice (unless the batch is larger than the dataset).

    The state is small and plain (JSON): the position and the rows carried over the last boundary.
    """

    def __init__(self, n: int, batch_size: int, seed: int = 0, shuffle: bool = True) -> None:
        """``n`` rows, ``batch_size`` rows a batch. Raises DataError if either is below 1."""
        if n < 1:
            raise DataError("there are no prompts to draw from: the dataset is empty")
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; it must be at least 1")
        self.n = n
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self._epoch = 0
        self._position = 0  # rows of this epoch already drawn
        self._carried: tuple[int, ...] = ()  # rows of the batch that began in the epoch before
        self._room = 0  # places that batch had left
        self._order = self._epoch_order()

    @property
    def epoch(self) -> float:
        """Epochs drawn so far, with the fraction of the present one."""
        return self._epoch + self._position / self.n

    def _epoch_order(self) -> list[int]:
        order = list(range(self.n))
        if self.shuffle:
            # A string seed is hashed with SHA-512: the same order on every machine and Python.
            random.Random(f"{self.seed}/{self._epoch}").shuffle(order)
        if not self._carried:
            return order
        held = set(self._carried)
        first = [row for row in order if row not in held][: self._room]
        taken = set(first)
        return first + [row for row in order if row not in taken]

    def next(self, count: int | None = None) -> list[int]:
        """The next ``count`` rows (``batch_size`` unless given)."""
        count = self.batch_size if count is None else count
        batch: list[int] = []
        while len(batch) < count:
            if self._position == self.n:
                self._carried = tuple(batch) if count <= self.n else ()
                self._room = count - len(batch)
                self._epoch += 1
                self._position = 0
                self._order = self._epoch_order()
            taken = self._order[self._position : self._position + count - len(batch)]
            batch += taken
            self._position += len(taken)
        return batch

    def end_epoch(self) -> None:
        """Leaves out what the present epoch has not drawn yet."""
        if self._position:
            self._position = self.n

    def state_dict(self) -> dict[str, Any]:
        """All that ``load_state_dict`` needs, as plain numbers and lists."""
        return {
            "n": self.n,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "epoch": self._epoch,
            "position": self._position,
            "carried": list(self._carried),
            "room": self._room,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken. Raises DataError if it is of another dataset or order.

        The batch size may differ: the position is counted in rows.
        """
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise DataError(f"this is not a sampler state: it lacks {', '.join(missing)}")
        if state["n"] != self.n:
            raise DataError(
                f"the checkpoint was taken with {state['n']} prompts and the dataset now has "
                f"{self.n}: the order cannot be continued. Resume with the same data and the same "
                "data.* settings (limit, length limits), or start a new run from the saved model"
            )
        for key in ("seed", "shuffle"):
            if state[key] != getattr(self, key):
                raise DataError(
                    f"the checkpoint was taken with {key} = {state[key]} and this run has {key} = "
                    f"{getattr(self, key)}: the order cannot be continued. Set it back to "
                    f"{state[key]}, or start a new run from the saved model"
                )
        self._epoch = int(state["epoch"])
        self._position = int(state["position"])
        self._carried = tuple(int(row) for row in state["carried"])
        self._room = int(state["room"])
        self._order = self._epoch_order()
