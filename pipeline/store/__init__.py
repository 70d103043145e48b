"""Keep tensors on disk: a zarr v3 group of arrays, written block by block, resumed after a crash, verified."""

from pipeline.store.activation_cache import write_cache
from pipeline.store.reader import Store, list_stores, open_store
from pipeline.store.running_statistics import read_statistics, statistics_path
from pipeline.store.schema import ArraySpec
from pipeline.store.writer import StoreWriter

__all__ = [
    "ArraySpec",
    "Store",
    "StoreWriter",
    "list_stores",
    "open_store",
    "read_statistics",
    "statistics_path",
    "write_cache",
]
