"""Every probe on the device: the table and tensors of the CPU; its results are on the CPU and can be kept."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import interventions as iv
import probes
from probes.random_recipes import stand_ins
from probes.results import ProbeResult
from tests.cuda.place import DEVICE, close, models_moved, same_frames, tensors_of
from tests.probes import provenance as calls
from tests.tiny import tiny_model
from workbench.models.pair import load_pair

NAMES = calls.probes_with_results()


@cache
def expected(name: str) -> list[Any]:
    return results(name)


def results(name: str) -> list[Any]:
    return [getattr(probes, name)(**given) for given in calls.calls_of(name).given]


@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
@pytest.mark.parametrize("base", [True, False], ids=["both", "tuned-alone"])
@pytest.mark.parametrize("name", NAMES)
def test_as_on_the_cpu(name: str, base: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = expected(name)
    with models_moved(monkeypatch, base=base):
        found = results(name)
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        elsewhere = [path for path, value in tensors_of(one) if value.device.type != "cpu"]
        assert not elsewhere, f"these tensors of the result are not on the CPU: {elsewhere}"
        if name != "compare":
            assert str(one.provenance.device).split(":")[0] in (DEVICE.type, "cpu")
        again = ProbeResult.load(one.save(tmp_path / "result.safetensors"))
        same_frames(again.frame(), one.frame(), atol=0, rtol=1e-12)
        assert one.to_json() and one._repr_html_() and one.summary()
        same_frames(one.frame(), other.frame())


@pytest.mark.parametrize("exact", [True, False])
def test_weight_delta_of_loaded_models_is_that_of_their_files(exact: bool, home: Path) -> None:
    folders = home / "llama-base", home / "llama-tuned"
    pair = load_pair(*folders, device=str(DEVICE))
    found = probes.weight_delta(pair, exact=exact)
    same_frames(found.frame(), probes.weight_delta(*folders, exact=exact).frame())
    assert all(value.device.type == "cpu" for _, value in tensors_of(found))


def test_weight_delta_of_an_adapter_elsewhere_than_its_base(home: Path) -> None:
    """The base from its folder, the adapter in a loaded model."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(tiny_model("llama"), config).eval()
    wanted = probes.weight_delta(home / "llama-base", tuned)
    loaded = tiny_model("llama")
    of_loaded = probes.weight_delta(loaded, tuned).frame()
    found = probes.weight_delta(home / "llama-base", tuned.to(DEVICE))
    same_frames(found.frame(), wanted.frame())
    same_frames(probes.weight_delta(loaded, tuned).frame(), of_loaded)
    assert all(value.device.type == "cpu" for _, value in tensors_of(found))


def test_stand_ins_of_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    vector, rows = torch.arange(64.0), calls.rows()
    wanted = stand_ins(iv.Recipe([iv.Offset(1, vector)]), calls.pair().tuned, rows, 10, 0)
    with models_moved(monkeypatch):
        model = calls.pair().tuned
        found = stand_ins(iv.Recipe([iv.Offset(1, vector.to(DEVICE))]), model, rows, 10, 0)
        switches = stand_ins(iv.Recipe([iv.ExpertSwitch(off=["L1E2"])]), calls.pair("qwen3moe").tuned, rows, 10, 0)
    assert len(found) == len(switches) == 10
    for one, other in zip(found, wanted, strict=True):
        for (_, a), (_, b) in zip(tensors_of(list(one)), tensors_of(list(other)), strict=True):
            close(a, b)
    with found[0].applied(model):
        model.forward(torch.arange(5, 15)[None])


def test_activations_read_from_the_device_feed_the_linear_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default draws and folds, beside the call above."""
    labels = list("ab" * 6)
    wanted = probes.head_probe(calls.recording("z"), labels, draws=10).frame()
    with models_moved(monkeypatch):
        frame = probes.head_probe(calls.recording("z"), labels, draws=10).frame()
    same_frames(frame, wanted)
