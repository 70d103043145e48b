"""`ActivationCache`: values by easyroutine's keys, which grows batch by batch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from interp.compat.easyroutine.cache_files import ValueWithInfo, read_values, write_values
from interp.compat.easyroutine.joined_values import (
    Aggregation,
    Layout,
    aligned,
    folded,
    offsets,
    size_of,
    together,
    widest,
)
from interp.errors import InterpError, nearest

__all__ = ["ActivationCache", "NoSuchKey"]

_PACKED = re.compile(r"(values|keys|queries)_L?(\d+)")
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "KB"))
_LAYER = re.compile(r"(?<=_)L?(\d+)(H\d+)?$")
_MISSING = object()


class NoSuchKey(InterpError, KeyError):
    """A key that a cache does not have; a `KeyError` too."""

    __str__ = Exception.__str__


class ActivationCache:
    """A dictionary of activations by key, such as `resid_out_3` or `pattern_L0H2`; `cat` adds the next batch's.

    Where examples have different numbers of tokens at a name, an axis of positions has places for the most, and NaN
    where an example has none. `values_L3` and `values_3` are the same key; so with keys and queries.

    Attributes:
        cache: the values by key.
        layouts: key -> axis -> the names along it, for keys with axes of positions.
        counts: of running means, how many examples each number is the mean of, by key.
        padding_id: what stands behind the tokens of an example that is shorter than another.
    """

    def __init__(self) -> None:
        self.cache: dict[str, Any] = {}
        self.layouts: dict[str, dict[int, Layout]] = {}
        self.counts: dict[str, Tensor] = {}
        self.aggregation_strategies: dict[str, Aggregation] = {}
        self.padding_id = 0
        self._deferred: list[ActivationCache] | None = None

    # A dictionary -----------------------------------------------------------------------------------------------------

    def _key(self, key: str) -> str:
        if key not in self.cache and isinstance(key, str) and (match := _PACKED.fullmatch(key)):
            for other in (f"{match[1]}_{match[2]}", f"{match[1]}_L{match[2]}"):
                if other in self.cache:
                    return other
        return key

    def __getitem__(self, key: str) -> Any:
        found = self.cache.get(self._key(key), _MISSING)
        if found is _MISSING:
            raise NoSuchKey(f"the cache has no {key!r}.{nearest(str(key), self.cache)}")
        return found

    def __setitem__(self, key: str, value: Any) -> None:
        key = self._key(key)
        self._forget(key)
        self.cache[key] = value

    def __delitem__(self, key: str) -> None:
        key = self._key(key)
        if key not in self.cache:
            raise NoSuchKey(f"the cache has no {key!r}.{nearest(str(key), self.cache)}")
        self._forget(key)
        del self.cache[key]

    def _forget(self, key: str) -> None:
        self.layouts.pop(key, None)
        self.counts.pop(key, None)

    def __contains__(self, key: object) -> bool:
        return self._key(key) in self.cache  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache)

    def __len__(self) -> int:
        return len(self.cache)

    def __add__(self, other: ActivationCache | Mapping[str, Any]) -> ActivationCache:
        """The keys of both; the other's where both have one."""
        made = type(self)()
        made.update(self)
        made.update(other)
        return made

    def __repr__(self) -> str:
        return f"ActivationCache(`{', '.join(key for key in self.cache if key != 'metadata')}`)"

    def __str__(self) -> str:
        shown = (f"{key}: {value}" for key, value in self.cache.items() if key != "metadata")
        return f"ActivationCache({', '.join(shown)})"

    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        return not self.cache

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or a default."""
        return self.cache.get(self._key(key), default)

    def keys(self) -> Any:
        """The keys."""
        return self.cache.keys()

    def values(self) -> Any:
        """The values."""
        return self.cache.values()

    def items(self) -> Any:
        """Keys and values."""
        return self.cache.items()

    def update(self, other: ActivationCache | Mapping[str, Any]) -> None:
        """Take the keys of another one, or of a dictionary, over those that are here."""
        if not isinstance(other, ActivationCache | Mapping):
            raise InterpError(f"update: expected an ActivationCache or a dictionary, got {other!r:.80}.")
        for key, value in other.items():
            self[key] = value
            if isinstance(other, ActivationCache) and key in other.layouts:
                self.layouts[self._key(key)] = dict(other.layouts[key])
            if isinstance(other, ActivationCache) and key in other.counts:
                self.counts[self._key(key)] = other.counts[key]

    def put(self, key: str, value: Any, *layouts: Layout) -> None:
        """Set a value whose axes from 1 on are positions.

        Arguments:
            key: the key.
            value: a tensor, or a dictionary of some.
            layouts: of the axes 1, 2, ...
        """
        self[key] = value
        self.layouts[self._key(key)] = {axis: dict(layout) for axis, layout in enumerate(layouts, 1)}

    # Devices ----------------------------------------------------------------------------------------------------------

    def to(self, device: str | torch.device) -> Self:
        """Move every tensor; returns the cache itself."""
        for key, value in self.cache.items():
            self.cache[key] = _moved(value, device)
        self.counts = {key: count.to(device) for key, count in self.counts.items()}
        return self

    def cpu(self) -> Self:
        """Move every tensor to the CPU."""
        return self.to("cpu")

    def cuda(self) -> Self:
        """Move every tensor to the GPU."""
        return self.to("cuda")

    # Batch by batch ---------------------------------------------------------------------------------------------------

    def register_aggregation(self, key_pattern: str, function: Aggregation) -> None:
        """Say how values of keys that begin so come together.

        Arguments:
            key_pattern: the beginning.
            function: of the old value (None: there is none yet) and the new one; or of a list of these two.
        """
        self.aggregation_strategies[key_pattern] = function

    def remove_aggregation(self, key_pattern: str) -> None:
        """Take back what `register_aggregation` said."""
        self.aggregation_strategies.pop(key_pattern, None)

    def add_with_info(self, key: str, value: Tensor, info: str) -> None:
        """Set a tensor with a text about it, which `cache[key].info()` gives."""
        self[key] = ValueWithInfo.of(value, info)

    def add_metadata(
        self, target_token_positions: Any, model_name: str, extraction_config: Any, interventions: Any
    ) -> None:
        """Set `metadata`: what was asked of which model."""
        self.cache["metadata"] = {
            "target_token_positions": target_token_positions,
            "model_name": model_name,
            "extraction_config": extraction_config,
            "interventions": interventions,
        }

    def cat(self, external_cache: ActivationCache) -> None:
        """Add the values of the next batch.

        Tensors are joined along the examples; where these have different numbers of tokens at a name, the shorter are
        filled with NaN. Running means are weighed by their examples. Lists and tuples become one list, whatever else is
        given becomes a list; `mapping_index` is that of all examples.

        Arguments:
            external_cache: the batch's.

        Raises:
            InterpError: it has other keys.
        """
        if not isinstance(external_cache, ActivationCache):
            raise InterpError(f"cat: expected an ActivationCache, got {external_cache!r:.80}.")
        if self._deferred is not None:
            self._deferred.append(external_cache)
        else:
            self._take([external_cache])

    @contextmanager
    def deferred_mode(self) -> Iterator[Self]:
        """In its block `cat` only notes the batches; behind it all come together at once, which is faster."""
        before, self._deferred = self._deferred, []
        try:
            yield self
            noted = self._deferred
        finally:
            self._deferred = before
        self._take(noted)

    def _take(self, caches: Sequence[ActivationCache]) -> None:
        """Add several batches at once."""
        if not caches:
            return
        parts = caches if self.is_empty() else [self, *caches]
        first = parts[0].cache.keys()
        for other in parts[1:]:
            if other.cache.keys() != first:
                lacks, more = sorted(first - other.cache.keys()), sorted(other.cache.keys() - first)
                raise InterpError(f"cat: the caches have other keys. Missing: {lacks}; not in the first: {more}.")
        joined = type(self)()
        for key in first:
            function = next(
                (each for begin, each in self.aggregation_strategies.items() if key.startswith(begin)), None
            )
            if function is not None:
                joined.cache[key] = folded(function, [part.cache[key] for part in parts], begins=parts is caches)
            elif all(key in part.counts for part in parts):
                for part in parts:
                    layouts = part.layouts.get(key, {})
                    joined.add_to_mean(
                        key, part.cache[key].nan_to_num() * part.counts[key], part.counts[key], *layouts.values()
                    )
            else:
                self._join(joined, key, parts)
        self.cache, self.layouts, self.counts = joined.cache, joined.layouts, joined.counts
        self.padding_id = parts[0].padding_id

    @staticmethod
    def _join(joined: ActivationCache, key: str, parts: Sequence[ActivationCache]) -> None:
        values = [part.cache[key] for part in parts]
        if key == "mapping_index":
            joined.cache[key] = offsets(widest([{n: len(at) for n, at in value.items()} for value in values]))
        elif key == "metadata":
            joined.cache[key] = values[0]
        elif key == "token_dict":
            joined.cache[key] = [each for value in values for each in (value if isinstance(value, list) else [value])]
        else:
            axes = parts[0].layouts.get(key, {})
            wide = {axis: widest([part.layouts.get(key, {}).get(axis, {}) for part in parts]) for axis in axes}
            fills = [part.padding_id for part in parts]
            own = [
                aligned(part.cache[key], part.layouts.get(key, {}), wide, fill)
                for part, fill in zip(parts, fills, strict=True)
            ]
            joined.put(key, together(own), *wide.values())

    def add_to_mean(self, key: str, sums: Tensor, counts: Tensor, *layouts: Layout) -> None:
        """Let more examples count in a running mean.

        Arguments:
            key: of the mean.
            sums: over the examples, (1, ...).
            counts: of how many examples each number is the sum.
            layouts: of the axes 1, 2, ...
        """
        axes = {axis: dict(layout) for axis, layout in enumerate(layouts, 1)}
        if key in self.cache:
            old, before = self.layouts[key], self.counts[key]
            wide = {axis: widest([old[axis], axes[axis]]) for axis in axes}
            held = self.cache[key].nan_to_num() * before
            sums = aligned(sums, axes, wide, 0, 0.0) + aligned(held, old, wide, 0, 0.0).to(sums)
            counts = aligned(counts, axes, wide, 0, 0.0) + aligned(before, old, wide, 0, 0.0).to(counts)
            axes = wide
        mean = torch.where(counts > 0, sums / counts.clamp(min=1), torch.nan)
        self.put(key, mean, *axes.values())
        self.counts[key] = counts

    def forget_means(self) -> None:
        """Take the running means out, so that they begin anew."""
        for key in list(self.counts):
            del self[key]

    # What is in it ----------------------------------------------------------------------------------------------------

    def map_to_dict(self, key: str) -> dict[Any, Tensor]:
        """The parts of a value by the names of positions.

        Arguments:
            key: of a tensor with positions.

        Returns:
            Name -> (example, position, ...), without the axis of positions where the name is one token.

        Raises:
            InterpError: the value has no positions.
        """
        value = self[key]
        layout = self.layouts.get(self._key(key), {}).get(1)
        if layout is None and isinstance(value, Tensor) and "mapping_index" in self.cache:
            layout = {name: len(at) for name, at in self.cache["mapping_index"].items()}
        if not isinstance(value, Tensor) or layout is None or value.dim() < 2 or value.shape[1] != sum(layout.values()):
            raise InterpError(f"map_to_dict: {key!r} is no tensor (example, position, ...).")
        parts = value.split(list(layout.values()), dim=1)
        return {name: part.squeeze(1) for name, part in zip(layout, parts, strict=True)}

    def memory_size(self, key: str | None = None) -> str:
        """How much memory a value takes, or all do, as text (`1.25 MB`)."""
        if key is not None and key not in self:
            return "Not present: 0 B"
        return _shown(size_of(self.cache if key is None else self[key]))

    def memory_tree(self, print_tree: bool = False, grouped_tree: bool = False) -> dict[str, str]:
        """How much memory each value takes.

        Arguments:
            print_tree: print it too.
            grouped_tree: one entry for all layers and heads (`resid_out`), with how many there are.
        """
        groups: dict[str, list[int]] = {}
        for key, value in self.cache.items():
            if size_of(value):
                groups.setdefault(_LAYER.sub("", key).rstrip("_") if grouped_tree else key, []).append(size_of(value))
        tree = {
            name: _shown(sum(sizes)) + (f" ({len(sizes)} items)" if len(sizes) > 1 else "")
            for name, sizes in groups.items()
        }
        if print_tree:
            print(f"Activation cache, {self.memory_size()}")
            for name, size in tree.items():
                print(f"   - {name}: {size}")
        return tree

    def save(self, path: str | Path) -> None:
        """Write the cache into one safetensors file, without pickle.

        Raises:
            InterpError: it holds what is neither tensors nor plain data.
        """
        held = {
            "cache": self.cache,
            "layouts": self.layouts,
            "counts": self.counts,
            "padding_id": self.padding_id,
        }
        write_values(path, held)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a cache that `save` wrote; what `register_aggregation` said is not in it."""
        made = cls()
        for name, value in read_values(path).items():
            setattr(made, name, value)
        return made


def _moved(value: Any, device: str | torch.device) -> Any:
    if isinstance(value, ValueWithInfo):
        return ValueWithInfo.of(value.value().to(device), value.info())
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(each, device) for name, each in value.items()}
    return [_moved(each, device) for each in value] if isinstance(value, list) else value


def _shown(size: float) -> str:
    for unit, name in _UNITS:
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size:.2f} B"
