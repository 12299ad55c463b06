"""Run by a test: writes the store of ``test_store`` slowly, and is killed on the way."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.workbench.recording.steps import CONFIG, SHARD_BYTES, steps
from workbench.recording.store import ShardWriter

if __name__ == "__main__":
    with ShardWriter(Path(sys.argv[1]), CONFIG, shard_bytes=SHARD_BYTES) as writer:
        for tensors, index in steps()[writer.steps_done :]:
            writer.append(tensors, index)
            time.sleep(0.02)
