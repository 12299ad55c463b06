"""PEFT's X-LoRA and Arrow: gates as PEFT uses them, and what closing or forcing an adapter must give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import ArrowConfig, LoraConfig, PeftModel, XLoraConfig, create_arrow_model, get_peft_model

import interventions as iv
from tests.tiny import tiny_model
from workbench.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.randint(5, 250, (2, 7), generator=torch.Generator().manual_seed(0))
MODULES = 6
"""Query and value projections of three layers."""


def saved_adapters(folder: Path, count: int) -> list[str]:
    paths = []
    for number in range(count):
        torch.manual_seed(number)
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        path = folder / str(number)
        get_peft_model(tiny_model("llama"), config).save_pretrained(path)
        paths.append(str(path))
    return paths


def arrow(folder: Path, top_k: int = 2) -> Any:
    config = ArrowConfig(top_k=top_k, router_temperature=0.7, use_gks=False)
    return create_arrow_model(tiny_model("llama"), saved_adapters(folder, 3), config).eval()


def xlora(folder: Path, **options: Any) -> Any:
    paths = {str(number): path for number, path in enumerate(saved_adapters(folder, 3))}
    hf = tiny_model("llama")
    hf.config.use_cache = False
    torch.manual_seed(5)
    config = XLoraConfig(task_type="CAUSAL_LM", hidden_size=hf.config.hidden_size, adapters=paths, **options)
    return get_peft_model(hf, config).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def alone(path: Path, number: int) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(tiny_model("llama"), str(path / str(number))).eval())


MAKERS: dict[str, Callable[[Path], Any]] = {"arrow": arrow, "xlora": xlora}


@pytest.mark.parametrize("kind", MAKERS)
def test_reading_changes_nothing_and_forcing_is_that_adapter_alone(kind: str, tmp_path: Path) -> None:
    model = MAKERS[kind](tmp_path)
    plain = logits(model)
    with iv.live_gates(model) as log:
        assert torch.equal(logits(model), plain), "bit-equal while it is read"
    assert log.gates.shape == (2, 7, MODULES, 3) and len(log.modules) == MODULES and len(log.adapters) == 3
    torch.testing.assert_close(log.gates.sum(-1), torch.ones(2, 7, MODULES))
    frame = log.frame()
    assert len(frame) == log.gates.numel() and set(frame["adapter"]) == set(log.adapters)
    spot = frame[(frame["row"] == 1) & (frame["position"] == 3) & (frame["module"] == log.modules[4])]
    torch.testing.assert_close(torch.tensor(spot["weight"].to_numpy()), log.gates[1, 3, 4])
    assert all("self_attn" in path for path in log.modules)
    for number, name in enumerate(log.adapters):
        with iv.live_gates(model, forced=name) as forced:
            torch.testing.assert_close(logits(model), alone(tmp_path, number), atol=2e-5, rtol=1e-4)
        assert forced.gates[..., number].eq(1).all() and forced.gates.sum() == 2 * 7 * MODULES
    assert torch.equal(logits(model), plain), "nothing stays"


@pytest.mark.parametrize("kind", MAKERS)
def test_a_closed_adapter_gets_nothing_and_the_others_all(kind: str, tmp_path: Path) -> None:
    model = MAKERS[kind](tmp_path)
    with iv.live_gates(model) as before:
        plain = logits(model)
    first, *others = before.adapters
    with iv.live_gates(model, closed=[first]) as after:
        changed = logits(model)
    assert after.gates[..., 0].eq(0).all() and not torch.allclose(changed, plain, atol=1e-3)
    torch.testing.assert_close(after.gates.sum(-1), torch.ones(2, 7, MODULES))
    with iv.live_gates(model, closed=others) as last:
        torch.testing.assert_close(logits(model), alone(tmp_path, 0), atol=2e-5, rtol=1e-4)
    assert last.gates[..., 0].eq(1).all()


def test_arrows_gates_are_those_that_make_its_output(tmp_path: Path) -> None:
    """The recorded weights and the adapters give the module's own output, written out."""
    model = arrow(tmp_path)
    seen: dict[str, Any] = {}
    module = model.base_model.model.model.layers[0].self_attn.q_proj
    layer = module.lora_arrow["arrow_router"]
    handle = layer.register_forward_hook(lambda _m, args, kw, out: seen.update(x=args[0], out=out), with_kwargs=True)
    with iv.live_gates(model) as log:
        logits(model)
    handle.remove()
    gates = log.gates[:, :, log.modules.index("model.layers.0.self_attn.q_proj")]
    parts = [module.lora_B[name](module.lora_A[name](seen["x"])) * module.scaling[name] for name in log.adapters]
    written = sum(gates[..., number, None] * part for number, part in enumerate(parts))
    torch.testing.assert_close(written, seen["out"], atol=1e-6, rtol=1e-5)
    assert (gates > 0).sum(-1).eq(2).all(), "the two best of three"


def test_xloras_gates_are_those_that_peft_logs(tmp_path: Path) -> None:
    model = xlora(tmp_path, top_k_lora=1, layerwise_scalings=True)
    model.enable_scalings_logging()
    with iv.live_gates(model) as log:
        logits(model)
    raw = model.get_scalings_log()[-1]
    assert (log.gates > 0).sum(-1).eq(1).all(), "the best alone"
    torch.testing.assert_close(log.gates.amax(-1), raw.amax(-1).float())
    assert torch.equal(log.gates.argmax(-1), raw.argmax(-1))


def test_a_saved_xlora_opens_as_it_was(tmp_path: Path) -> None:
    """Also where names are sorted as text; what is not in its folder is refused."""
    tiny_model("llama").save_pretrained(tmp_path / "base")
    for count in (3, 11):
        paths = {str(number): path for number, path in enumerate(saved_adapters(tmp_path, count))}
        hf = tiny_model("llama")
        hf.config.use_cache = False
        torch.manual_seed(5)
        model = get_peft_model(hf, XLoraConfig(task_type="CAUSAL_LM", hidden_size=64, adapters=paths)).eval()
        folder = tmp_path / f"xlora-{count}"
        model.save_pretrained(folder)
        opened = iv.open_xlora(tmp_path / "base", folder)
        torch.testing.assert_close(logits(opened), logits(model), atol=1e-6, rtol=1e-5)
        with iv.live_gates(model) as one, iv.live_gates(opened) as other:
            logits(model), logits(opened)
        torch.testing.assert_close(one.gates, other.gates)
    (folder / "0" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="does not hold the router's"):
        iv.open_xlora(tiny_model("llama"), folder)
    with pytest.raises(UserError, match="which is gone"):
        iv.open_xlora(tiny_model("llama"), folder, adapters={"0": str(tmp_path / "none")})
    with pytest.raises(UserError, match="calls an adapter 'code'"):
        iv.open_xlora(tiny_model("llama"), folder, adapters={"code": str(tmp_path / "0")})
    with pytest.raises(UserError, match="not an X-LoRA"):
        iv.open_xlora(tiny_model("llama"), tmp_path / "0")
    with pytest.raises(UserError, match="no folder of an adapter"):
        iv.open_xlora(tiny_model("llama"), tmp_path / "base")


def test_nothing_stays_after_an_exception(tmp_path: Path) -> None:
    model = arrow(tmp_path)
    before = logits(model)
    with pytest.raises(KeyError), iv.live_gates(model, closed=["task_0"]):
        raise KeyError
    assert torch.equal(logits(model), before)


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    plain = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(UserError, match="has no X-LoRA or Arrow router"), iv.live_gates(plain):
        pass
    model = arrow(tmp_path)
    for options, words in (
        ({"closed": ["task_9"]}, "Unknown adapter 'task_9'"),
        ({"closed": ["task_0", "task_1", "task_2"]}, "leave one open"),
        ({"closed": ["task_0"], "forced": "task_0"}, "leave one open"),
    ):
        with pytest.raises(UserError, match=words), iv.live_gates(model, **options):
            pass
    with iv.live_gates(model) as log, pytest.raises(UserError, match="No forward pass ran"):
        log.frame()
