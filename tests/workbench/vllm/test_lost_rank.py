"""A rank of a split model that dies is one sentence, and nothing of it stays."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import workbench as wb
from tests.tiny import tiny_model, tokenizer
from tests.workbench.vllm.lora_folders import save_lora_pair
from workbench.errors import UserError
from workbench.prompts import Prompts
from workbench.vllm.ranks import FURTHER_RANK

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def ranks() -> list[psutil.Process]:
    """Further ranks of this process that live."""
    living = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # a zombie too
            if FURTHER_RANK in child.cmdline():
                living.append(child)
    return living


@pytest.mark.parametrize("split", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_a_rank_that_was_killed_is_one_sentence(split: str, tmp_path: Path) -> None:
    folders = save_lora_pair(tmp_path, tiny_model("llama", head_dim=32), tokenizer())
    pair, texts = wb.load_pair(*folders, dtype="float32"), Prompts.of(["the quick brown fox"], chat=False)
    with wb.on_vllm(pair, **{split: 2}, max_model_len=128, max_num_seqs=8):
        (rank,) = ranks()
        os.kill(rank.pid, signal.SIGKILL)
        while ranks():
            time.sleep(0.1)
        time.sleep(1)  # until its end is known here
        with pytest.raises(UserError, match=r"in several has ended \(rank 1 with exit code -9"):
            wb.behaviour_diff(pair, texts, metrics=["length"], max_new_tokens=2)
    assert not ranks() and not list(Path("/dev/shm").glob("*-tp:*cpushm*"))
