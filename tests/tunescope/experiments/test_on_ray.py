"""``executor="ray"``: the steps of all cells in two workers leave the numbers of one process, also when one dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.ray_cluster import QUIET, worker_processes
from tests.ray_cluster import cluster as cluster
from tests.tunescope.experiments.test_running import MOE
from tunescope.experiments import Experiment, run_experiment
from workbench.errors import UserError
from workbench.progress import Silent

pytestmark = QUIET


class KillsOne(Silent):
    """Kills one worker once a step is done."""

    def __init__(self) -> None:
        self.victim = 0

    def advance(self, by: int = 1) -> None:
        if not self.victim and (alive := worker_processes()):
            self.victim = alive[0].pid
            os.kill(self.victim, signal.SIGKILL)


@pytest.mark.slow
def test_cells_in_two_workers_leave_the_numbers_of_one_process(cluster: Any, home: Path, tmp_path: Path) -> None:
    experiment, killer = Experiment.parse(MOE), KillsOne()
    alone = run_experiment(experiment, tmp_path / "alone", folder=home)
    shared = run_experiment(
        experiment, tmp_path / "shared", folder=home, executor="ray", workers=2, progress=killer
    )  # fmt: skip
    assert killer.victim
    pd.testing.assert_frame_equal(alone.metrics, shared.metrics, check_exact=True)
    steps = [sorted(path.name for path in (run.run.path / "steps").iterdir()) for run in (alone, shared)]
    assert steps[0] == steps[1]
    for folder in steps[0]:
        tables = [pd.read_parquet(run.run.path / "steps" / folder / "table.parquet") for run in (alone, shared)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.slow
def test_what_a_step_refuses_is_said_with_its_cell(cluster: Any, home: Path, tmp_path: Path) -> None:
    text = MOE.replace("target: a", "target: no-such-group")
    with pytest.raises(UserError, match=r"cell 0 .*step experts"):
        run_experiment(Experiment.parse(text), tmp_path / "run", folder=home, executor="ray", workers=2)


def test_wrong_use(home: Path, tmp_path: Path) -> None:
    experiment = Experiment.parse(MOE)
    with pytest.raises(UserError, match="workers are processes of a Ray cluster"):
        run_experiment(experiment, tmp_path / "run", folder=home, workers=2)
    with pytest.raises(UserError, match="Unknown executor 'rai'"):
        run_experiment(experiment, tmp_path / "run", folder=home, executor="rai")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
