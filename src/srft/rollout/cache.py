"""Keys and values: captured from one pass over the prompts, kept in a preallocated block of rows.

All rows share one clock. Slot ``s`` of every row is written in the same step, so a step writes one
slice, and a sliding window is one slice too. A row whose prompt is shorter, or that joined later,
starts at a later slot; what lies before its start is masked.

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
    """Preallocated keys and values of rows 0..active, laid out densely over the slots in use.

    The memory for [layers, 2, rows, key/value heads, slots, head size] is taken once; at any time it
    is viewed with ``span`` <= slots, because batched products over a dense block are several times
    faster than over slices of a longer one. When the span is full the live window is laid out anew,
    at the front of a longer span. ``first`` is the earliest slot any live row uses; ``slot`` is the
    one written next; ``mask`` hides what is outside a row's window.
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
        layers, self.heads, self.size = shape
        # Zeros, not empty: masked slots are multiplied by a weight of 0, and 0 * NaN is NaN.
        numbers = rows * self.heads * slots * self.size
        # One layer more than there are: a new layout is written into the place that is free.
        self.store = torch.zeros(layers + 1, 2, numbers, dtype=dtype, device=device)
        self._free = layers
        self._mask_store = torch.zeros(rows * slots, dtype=dtype, device=device)
        self.rows, self.slots = rows, slots
        self._rows_held, self._slots_held = rows, slots
        self.first = self.slot = 0
        self._view(slots)

    def resize(self, rows: int, slots: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Serve a call that needs so many rows and slots, from the memory held; False if it does
        not suffice. What lies beyond is not used, so that a call computes the same, to the bit,
        whatever was called before it."""
        same = self.store.dtype == dtype and self.store.device == device
        if not (same and self._rows_held >= rows and self._slots_held >= slots):
            return False
        self.rows, self.slots = rows, slots
        return True

    def _view(self, span: int) -> None:
        self.span = span
        numbers = self.rows * self.heads * span * self.size
        layers = self.store[1:] if self._free == 0 else self.store[:-1]
        block = (len(layers), 2, self.rows, self.heads, span, self.size)
        self.block = layers[:, :, :numbers].view(block)
        self.mask = self._mask_store[: self.rows * span].view(self.rows, 1, 1, span)
        self._active: list[tuple[Tensor, Tensor]] = []

    def set_active(self, rows: int) -> None:
        """Make rows 0..rows the ones that steps write and read."""
        self._active = [(pair[0, :rows], pair[1, :rows]) for pair in self.block]
        self._active_mask = self.mask[:rows]

    def open_slot(self) -> Tensor:
        """Let every active row see the slot that this step writes; returns the additive mask
        [A, 1, 1, span]."""
        self._active_mask.select(3, self.slot).zero_()
        return self._active_mask

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self._active[layer_idx]
        keys.narrow(2, self.slot, 1).copy_(key_states)
        values.narrow(2, self.slot, 1).copy_(value_states)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.slot - self.first

    def fill(
        self, first_row: int, prompts: CapturedPrompts, index_A: Tensor, length_A: Tensor
    ) -> None:
        """Copy prompts ``index_A`` of ``length_A`` tokens into the rows from ``first_row`` on, so
        that they end before ``slot``."""
        rows = slice(first_row, first_row + len(index_A))
        for layer, pair in enumerate(zip(prompts.keys, prompts.values, strict=True)):
            for target, source in zip(self.block[layer], pair, strict=True):
                width = source.shape[2]
                target[rows, :, self.slot - width : self.slot] = source.index_select(0, index_A)
        self._hide(rows, length_A)

    def _hide(self, rows: slice, length_A: Tensor) -> None:
        """Let these rows see their ``length_A`` slots before ``slot`` and nothing else."""
        slot = torch.arange(self.span, device=length_A.device)
        unseen = (slot < (self.slot - length_A)[:, None]) | (slot >= self.slot)
        mask = self.mask[rows].zero_()
        mask.masked_fill_(unseen[:, None, None], float("-inf"))

    def move(self, to_row: Tensor, from_row: Tensor) -> None:
        """Copy whole rows onto others (the two sets do not overlap)."""
        live = self.block[:, :, :, :, self.first : self.slot]
        live.index_copy_(2, to_row, live.index_select(2, from_row))
        self.mask.index_copy_(0, to_row, self.mask.index_select(0, from_row))

    def clear(self, slot: int) -> None:
        """Forget every row; the next prompts end before ``slot``."""
        self.first = self.slot = slot
        self._view(_roomy(slot, self.slots))

    def needs_layout(self) -> bool:
        """Whether the span is full, or mostly empty because long rows have left."""
        width = self.slot - self.first
        return self.slot == self.span or self.span > 2 * _roomy(width, self.slots)

    def lay_out(self, length_A: Tensor, at_least: int = 0) -> None:
        """Move the live window of the active rows (``length_A`` slots each) to the front of a span
        with some room, but so that ``slot`` becomes at least ``at_least``."""
        active, width = len(length_A), self.slot - self.first
        old, source = self.block, slice(self.first, self.slot)
        self.slot = max(width, at_least)
        self.first = self.slot - width
        # Every layer moves to the place beside it, the one next to the free place first.
        layers = len(old)
        self._free = layers - self._free
        self._view(_roomy(self.slot, self.slots))
        target = slice(self.first, self.slot)
        for layer in range(layers) if self._free else reversed(range(layers)):
            self.block[layer, :, :active, :, target] = old[layer, :, :active, :, source]
        self._hide(slice(0, active), length_A)


def _roomy(width: int, slots: int) -> int:
    """A span with room for an eighth more steps, sixteen at least; a multiple of 8, for kernels
    that want aligned masks."""
    roomy = width + max(16, width // 8)
    return min(slots, -(-roomy // 8) * 8)
