"""Recording activations: in memory, streamed into statistics, or stored as shards on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import lazy

if TYPE_CHECKING:
    from workbench.recording.reader import ShardReader as ShardReader
    from workbench.recording.reader import StoredTensor as StoredTensor
    from workbench.recording.store import ShardWriter as ShardWriter

__all__ = ["ShardReader", "ShardWriter", "StoredTensor"]

__getattr__ = lazy(__name__, {"ShardReader": "reader", "StoredTensor": "reader", "ShardWriter": "store"})
