"""Model code is imported by one thread of a server at a time: a page that comes while it is being imported waits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import probes
from tests.dashboards.sample_runs import prompts, save_pair
from workbench import runs
from workbench.models.pair import load_pair

PAGE_MEETS_WARM_UP = """
import sys, threading
from pathlib import Path
from dashboards import models

at, go_on, real = threading.Event(), threading.Event(), models.import_module

def slow(name):
    if name == "interventions.sweep":  # the first that needs transformers
        at.set()
        assert go_on.wait(300)
    return real(name)

models.import_module = slow
warm = models.warm()
assert at.wait(300)
from dashboards.results import results_in

(stored,) = results_in(Path(sys.argv[1]))
read = []
page = threading.Thread(target=lambda: read.append(stored.load()))
page.start()
page.join(4)
early = sorted(name for name in sys.modules if name.partition(".")[0] in ("transformers", "peft"))
go_on.set()
page.join(300)
assert not early, early
assert type(read[0]).__name__ == "AnswerChanges"
"""


def test_a_page_reads_a_result_after_the_import_that_is_under_way(tmp_path: Path) -> None:
    """Reading this result imports transformers too; two threads inside it at once can find it half there."""
    changes = probes.answers(load_pair(*save_pair(tmp_path), device="cpu"), prompts(), max_new_tokens=2)
    with runs.create(tmp_path / "runs", "r", kind="look", config={}) as run:
        run.file("results").mkdir()
        changes.save(run.file("results/answers.safetensors"))
    environment = {**os.environ, "TUNESCOPE_WARM": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    ended = subprocess.run([sys.executable, "-c", PAGE_MEETS_WARM_UP, str(run.path)], env=environment,
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
