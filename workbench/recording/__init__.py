"""Recording activations: in memory, streamed into statistics, or stored as shards on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import lazy

if TYPE_CHECKING:
    from workbench.recording.reader import ShardReader as ShardReader
    from workbench.recording.store import ShardWriter as ShardWriter
    from workbench.recording.stored import StoredTensor as StoredTensor

__all__ = ["ShardReader", "ShardWriter", "StoredTensor"]

__getattr__ = lazy(__name__, {"ShardReader": "reader", "StoredTensor": "stored", "ShardWriter": "store"})
