"""Keys and values: captured from one pass over the prompts, kept in a preallocated block of rows.

All rows share one clock. Slot ``s`` of every row is written in the same step, so a step writes one
slice, the keys that rows attend to are one slice, and a sliding window is a shorter slice. A row
whose prompt is shorter, or that joined later, starts at a later slot; what lies before its start is
masked. When the slots run out, the live window moves back to the front.

Shape suffixes: A active rows, P prompts of one prefill, S slots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from srft.errors import RolloutError


class CapturedPrompts(Cache):
    """A cache for one forward pass over left-padded prompts that keeps what each layer computed."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if layer_idx != len(self.keys):
            raise RolloutError(
                f"layer {layer_idx} stored its keys when layer {len(self.keys)} was due; the "
                "embedded sampler needs layers that each keep their own; set rollout.engine=generate"
            )
        self.keys.append(key_states)
        self.values.append(value_states)
        return key_states, value_states

    def shape(self) -> tuple[int, int, int]:
        """(layers, key/value heads, head size); RolloutError if layers or keys and values differ."""
        shapes = {(t.shape[1], t.shape[3]) for t in (*self.keys, *self.values)}
        if len(shapes) != 1:
            raise RolloutError(
                f"the layers keep keys and values of different shapes ({sorted(shapes)}), or none; "
                "the embedded sampler needs one shape; set rollout.engine=generate"
            )
        heads, size = shapes.pop()
        return len(self.keys), heads, size


class RowCache(Cache):
    """Preallocated [layers, 2, rows, key/value heads, slots, head size]; rows 0..active are live.

    ``first`` is the earliest slot any live row uses; ``slot`` is the one written next.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        rows: int,
        slots: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(layers=[])
        layers, heads, size = shape
        # Zeros, not empty: masked slots are multiplied by a weight of 0, and 0 * NaN is NaN.
        self.store = torch.zeros(layers, 2, rows, heads, slots, size, dtype=dtype, device=device)
        self.rows, self.slots = rows, slots
        self.first = self.slot = 0
        self._active: list[tuple[Tensor, Tensor]] = []

    def fits(self, rows: int, slots: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether this block can serve a call that needs so many rows and slots."""
        same = self.store.dtype == dtype and self.store.device == device
        return same and self.rows >= rows and self.slots >= slots

    def set_active(self, rows: int) -> None:
        """Make rows 0..rows the ones that steps write and read."""
        self._active = [(pair[0, :rows], pair[1, :rows]) for pair in self.store]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self._active[layer_idx]
        keys.narrow(2, self.slot, 1).copy_(key_states)
        values.narrow(2, self.slot, 1).copy_(value_states)
        seen = self.slot + 1 - self.first
        return keys.narrow(2, self.first, seen), values.narrow(2, self.first, seen)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.slot - self.first

    def fill(self, first_row: int, prompts: CapturedPrompts, index_A: Tensor) -> None:
        """Copy prompts ``index_A`` into the rows from ``first_row`` on, ending before ``slot``."""
        rows = slice(first_row, first_row + len(index_A))
        for layer, pair in enumerate(zip(prompts.keys, prompts.values, strict=True)):
            for target, source in zip(self.store[layer], pair, strict=True):
                width = source.shape[2]
                block = target[rows, :, self.slot - width : self.slot]
                block.copy_(source.index_select(0, index_A))

    def move(self, to_row: Tensor, from_row: Tensor) -> None:
        """Copy whole rows onto others (the two sets do not overlap)."""
        live = self.store[:, :, :, :, self.first : self.slot]
        live.index_copy_(2, to_row, live.index_select(2, from_row))

    def shift(self, slot: int, active: int) -> None:
        """Move the live window so that the slot written next becomes ``slot``."""
        width = self.slot - self.first
        assert width <= slot <= self.slots
        for layer in self.store:
            # A copy in between, because the two ranges may overlap.
            live = layer[:, :active, :, self.first : self.slot].clone()
            layer[:, :active, :, slot - width : slot] = live
        self.first, self.slot = slot - width, slot
