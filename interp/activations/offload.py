"""Copies activations from the device to the CPU, one copy a batch, while the next batch runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Copies"]

Take = Callable[[list[Tensor]], None]


@dataclass(frozen=True)
class _Copy:
    """A copy under way.

    Arguments:
        arrived: waits for it, and gives what came, flat.
        shapes, dtypes: of the tensors that it holds one behind the other.
        take: callback that receives the tensors.
    """

    arrived: Callable[[], Tensor]
    shapes: list[torch.Size]
    dtypes: list[torch.dtype]
    take: Take


class Copies:
    """Copies from one device to the CPU. On a CUDA device a copy runs while the next batch does.

    Arguments:
        device: where the values are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._at_once = device.type == "cpu"
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._buffers: list[Tensor | None] = [None, None]  # one is read while the other is filled
        self._under_way: _Copy | None = None

    @property
    def pending(self) -> bool:
        """Whether a copy is under way, whose values nobody has taken yet."""
        return self._under_way is not None

    def start(self, values: Sequence[Tensor], take: Take) -> None:
        """Start the copy of a batch's values, and hand over those of the batch before.

        Arguments:
            values: of a batch, of any shapes.
            take: is given them on the CPU, in this order, when they are there: at once, or in the next call of `start`
                or `finish`. It must copy what it keeps: the memory is used again.
        """
        if self._at_once:
            take([value.cpu() for value in values])  # some layers may be elsewhere
            return
        # Kinds of different width, and values of several devices, lie behind each other.
        flat = torch.cat([value.to(self._device).flatten() for value in values])
        started = _Copy(self._copy(flat), [v.shape for v in values], [v.dtype for v in values], take)
        self.finish()
        self._under_way = started

    def finish(self) -> None:
        """Wait for the last copy, and hand over its values."""
        copy, self._under_way = self._under_way, None
        if copy is None:
            return
        parts = copy.arrived().split([shape.numel() for shape in copy.shapes])
        described = zip(parts, copy.shapes, copy.dtypes, strict=True)
        copy.take([part.view(shape).to(dtype) for part, shape, dtype in described])

    def _copy(self, flat: Tensor) -> Callable[[], Tensor]:
        """Begin to copy a flat tensor; gives what waits for it."""
        if self._stream is None:  # no such machinery on this device
            here = flat.cpu()
            return lambda: here
        buffer = self._buffer(flat)
        event = torch.cuda.Event()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            buffer.copy_(flat, non_blocking=True)
            event.record(self._stream)
        flat.record_stream(self._stream)  # its memory is not given away before it is copied

        def arrived() -> Tensor:
            event.synchronize()
            return buffer

        return arrived

    def _buffer(self, flat: Tensor) -> Tensor:
        """Page-locked memory of a tensor's size: that of the batch before the last, where it is large enough."""
        self._buffers.reverse()
        held = self._buffers[0]
        if held is None or held.numel() < flat.numel() or held.dtype != flat.dtype:
            held = torch.empty(flat.numel(), dtype=flat.dtype, pin_memory=True, device="cpu")
            self._buffers[0] = held
        return held[: flat.numel()]
