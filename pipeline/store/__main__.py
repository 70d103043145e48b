"""Show and verify stores, and the cache that all runs share.

python -m pipeline.store info PATH                  # what a store holds
python -m pipeline.store verify PATH                # compare every byte with the store's markers
python -m pipeline.store verify --cache             # compare everything in the cache with its name
python -m pipeline.store verify --cache --remove    # and remove what is broken; the next run computes it again
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from interp.errors import InterpError
from pipeline.object_cache import Cache, remove_result, shared_cache
from pipeline.project import project_root
from pipeline.store.reader import open_store, stores_at, verify_root, verify_store
from pipeline.store.schema import how_to_mend


def info(path: Path) -> dict[str, Any]:
    """What a store holds: arrays with dimensions, dtypes and bytes on disk, static arrays, attributes."""
    store = open_store(path)
    arrays = {
        name: {
            "dimensions": dict(zip(store.spec(name).dimensions, store.shape(name), strict=True)),
            "dtype": store.dtype(name),
            "bytes": store.bytes_on_disk(name),
            "attributes": store.spec(name).attributes,
        }
        for name in store.arrays
    }
    static = {
        name: {"shape": list(values.shape), "dtype": values.dtype.name}
        for name in store.statics
        for values in [store.static(name)]
    }
    blocks = {"unit": store.unit, "size": store.block_size, "count": store.num_blocks}
    return {"path": str(path), "blocks": blocks, "arrays": arrays, "static": static, "attributes": store.attributes}


def as_text(found: dict[str, Any]) -> str:
    """The answer of `info` for a reader at a terminal."""
    blocks = found["blocks"]
    lines = [f"{found['path']}: {blocks['count']} blocks of {blocks['size']} along {blocks['unit']}"]
    for name, array in found["arrays"].items():
        dimensions = ", ".join(f"{d}={n}" for d, n in array["dimensions"].items())
        lines.append(f"  {name:<24} ({dimensions}) {array['dtype']}, {array['bytes']:,} bytes")
    for name, array in found["static"].items():
        lines.append(f"  {name:<24} {tuple(array['shape'])} {array['dtype']}, static")
    for key, value in found["attributes"].items():
        text = json.dumps(value, ensure_ascii=False)
        lines.append(f"  {key}: {text if len(text) <= 200 else text[:197] + '...'}")
    return "\n".join(lines)


def verify_cache(cache: Cache, *, remove: bool, as_json: bool) -> int:
    """Compare everything in the cache with its name, say what is broken, and remove it if asked to.

    Arguments:
        cache: the cache.
        remove: throw away what is broken, what leads to it, and what may have been computed from it.
        as_json: print JSON.

    Returns:
        The exit status: 1 where something is broken, and still there.
    """
    results, objects = list(cache.broken_results()), list(cache.broken_objects())
    faults = [*objects, *results]
    if remove:
        cache.discard(objects)
        for fault in results:
            remove_result(fault.path)
    if as_json:
        print(json.dumps([{"path": str(fault.path), "why": fault.why} for fault in faults], indent=2))
    else:
        print("\n".join(map(str, faults)) if faults else f"{cache.folder}: ok")
    if faults:
        done = "removed; the next run that needs it computes it again" if remove else "remove it with --remove"
        print(f"{len(faults)} broken: {done}", file=sys.stderr)
    return int(bool(faults) and not remove)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (1: something is broken)."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.store", description="Look at stores and at the cache.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("info", "what a store holds"), ("verify", "compare every byte with the store's markers")):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "path",
            type=Path,
            help="a store, or a group of stores such as lens.zarr",
            nargs="?" if name == "verify" else None,
        )
        command.add_argument("--json", action="store_true", help="print JSON")
    whole = commands.choices["verify"]
    whole.add_argument("--cache", action="store_true", help="the cache that all runs share, in place of a store")
    whole.add_argument("--remove", action="store_true", help="remove what is broken of the cache")
    options = parser.parse_args(arguments)
    if options.command == "verify" and (options.path is None) != options.cache:
        whole.error("expected the path of a store, or --cache")
    if options.command == "verify" and options.cache:
        return verify_cache(Cache(shared_cache(project_root())), remove=options.remove, as_json=options.json)
    try:
        stores = stores_at(options.path)
        if options.command == "info":
            found = [info(store) for store in stores]
            print(json.dumps(found, indent=2, ensure_ascii=False) if options.json else "\n".join(map(as_text, found)))
            return 0
        faults = {str(store): verify_store(store) for store in stores}
        if options.path not in stores:
            faults[str(options.path)] = verify_root(options.path)
    except InterpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(faults, indent=2, ensure_ascii=False))
    else:
        for store, lines in faults.items():
            print("\n".join(lines) if lines else f"{store}: ok")
    broken = any(faults.values())
    if broken:
        print(how_to_mend(options.path), file=sys.stderr)
    return int(broken)


if __name__ == "__main__":
    raise SystemExit(main())
