"""Pack prompts of different lengths into one row without padding.

Everything but attention works on each token alone, so it runs on the packed row. Attention, by
`interp.forward.shared_attention`, gets a row for each prompt, padded on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Packed", "sent"]


@dataclass(frozen=True)
class Packed:
    """How prompts stand in the row.

    Arguments:
        lengths: tokens of each prompt, in their order; the first is the longest, whose part of a mask then is every
            prompt's: masks tell where tokens stand in the row.
        starts: (prompt,), where each begins in the row.
        columns: (token,), the place of each token in its prompt.
        filled: (prompt x longest,), the token of the row at each place of the prompts side by side; a prompt's last one
            fills it up.
        kept: (token,), where each token of the row stands among these places.
    """

    lengths: Sequence[int]
    starts: Tensor
    columns: Tensor
    filled: Tensor
    kept: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Packed:
        """Prompts of some lengths, the longest of them first."""
        assert lengths[0] == max(lengths)
        counts = torch.tensor(lengths, device="cpu")
        starts = counts.cumsum(0) - counts
        places = torch.arange(lengths[0], device="cpu").expand(len(lengths), -1)
        filled = (starts[:, None] + places.minimum(counts[:, None] - 1)).flatten()
        kept = (places < counts[:, None]).flatten().nonzero()[:, 0]
        columns = kept % lengths[0]
        return cls(lengths, *(sent(tensor, device) for tensor in (starts, columns, filled, kept)))

    @property
    def tokens(self) -> int:
        """Tokens of the row."""
        return sum(self.lengths)

    def unpacked(self, states: Tensor) -> Tensor:
        """(prompt, heads, position, size), a row for each prompt, of (1, heads, token, size)."""
        if states.shape[0] != 1 or states.shape[2] != self.tokens:
            raise NotImplementedError(f"attention is given {tuple(states.shape)} for a row of {self.tokens} tokens")
        by_token = states[0].transpose(0, 1)  # (token, heads, size)
        rows = by_token.index_select(0, self.filled.to(states.device))
        return rows.unflatten(0, (len(self.lengths), self.lengths[0])).transpose(1, 2)

    def mask(self, mask: Tensor | None) -> Tensor | None:
        """(1, 1 or heads, position, key), the mask of any prompt, of the row's; keys before the row's come first."""
        if mask is None:
            return None
        if mask.dim() != 4 or mask.shape[0] != 1 or mask.shape[2] != self.tokens:
            raise NotImplementedError(f"the mask is {tuple(mask.shape)} for a row of {self.tokens} tokens")
        longest = self.lengths[0]
        return mask[:, :, :longest, : mask.shape[3] - self.tokens + longest]

    def through(
        self,
        attend: Callable[..., Any],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """An attention function, of the row.

        Arguments:
            attend: the function; gives (prompt, position, heads, size), and weights or none.
            module, args, kwargs: what else it is given.
            query, key, value: (1, heads, token, size).
            attention_mask: of the row.

        Returns:
            (1, token, heads, size), and no weights.
        """
        states = [self.unpacked(given) for given in (query, key, value)]
        read, _ = attend(module, *states, self.mask(attention_mask), *args, **kwargs)
        return read.flatten(0, 1).index_select(0, self.kept.to(read.device))[None], None


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor on the device, without waiting for what the device computes."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
