"""A model split over two processes computes what one process computes, hooks and all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.tiny import tiny_model, tokenizer
from tests.workbench.vllm.lora_folders import save_lora_pair
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import NotSupported, UserError
from workbench.vllm.ranks import Call, _packed, reporting_ranks
from workbench.vllm.running import check_settings

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize("split", ["tensor", "pipeline"])
def test_two_ranks_compute_what_one_process_computes(split: str, tmp_path: Path) -> None:
    folders = save_lora_pair(tmp_path, tiny_model("llama", head_dim=32), tokenizer())
    done = subprocess.run(
        [sys.executable, "-m", "tests.workbench.vllm.two_ranks", *map(str, folders), split], cwd=ROOT, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rows, steered texts and sampled texts are equal" in done.stdout


def test_a_hook_that_cannot_be_sent_is_refused() -> None:
    pytest.importorskip("cloudpickle")
    lock = threading.Lock()
    hooks = {0: [SiteHook(Site("resid_post", 0), lambda value, _: (value, lock)[0], edit=True)]}
    with pytest.raises(NotSupported, match="leave tensor_parallel_size and pipeline_parallel_size at 1"):
        _packed(Call("base", [[1]], {}, hooks=hooks))


def test_the_number_of_ranks_is_checked_first() -> None:
    check_settings({"tensor_parallel_size": 2, "pipeline_parallel_size": 2})
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        for wrong in (0, "2"):
            with pytest.raises(UserError, match=f"{name} is {wrong!r}: give 1 or more"):
                check_settings({name: wrong})
    with pytest.raises(UserError, match="is 4 and the model has 3 layers"):
        check_settings({"pipeline_parallel_size": 4}, layers=3)


def test_the_first_rank_of_each_later_stage_reports() -> None:
    assert list(reporting_ranks({"tensor_parallel_size": 2, "pipeline_parallel_size": 3})) == [2, 4]
    assert list(reporting_ranks({"pipeline_parallel_size": 2})) == [1]
    assert list(reporting_ranks({"tensor_parallel_size": 4})) == []
