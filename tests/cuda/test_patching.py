"""Attribution patching on the device: the target's run that carries the gradients is its plain run, bit for bit."""

from __future__ import annotations

import pytest
import torch

from probes.patches.cells import all_cells
from probes.patches.recorded import Recorded
from probes.replay import frozen
from tests.cuda.place import DEVICE, pair_on
from tests.probes.test_patching import random_task
from tests.tiny import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_the_run_with_gradients_is_the_plain_run(family: str) -> None:
    pair = pair_on(DEVICE, family)
    kinds = ["z", "resid_pre", "resid_post"]
    runs = Recorded(
        random_task(pair.tuned, pair.base), all_cells(pair.base, kinds, [0, 1, 2], [None]), "prob", 4, keep=0
    )
    with frozen(pair.base.hf):
        plain = next(runs.batches())
    graded = next(runs.batches([(kind, layer) for kind in kinds for layer in range(3)]))
    assert torch.equal(plain.run.logits, graded.run.logits)
    assert all(torch.equal(value, graded.run.values[site]) for site, value in plain.run.values.items())
    assert all(gradient.abs().sum() > 0 for gradient in graded.gradients.values())
