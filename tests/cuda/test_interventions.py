"""Every intervention on the device: the logits and texts of the CPU, whichever device its tensors came from."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import interventions as iv
from tests.cuda.place import DEVICE, close, models_moved
from tests.interventions.weight_cases import adapter_model_of
from tests.interventions.zoo import CASES, Case, ids, model_of, small_pair
from tests.tiny import FAMILIES, MOE_FAMILIES, tiny_model, tokenizer
from workbench.engine.hub import Hub
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_one, load_pair
from workbench.prompts.encode import Encoded

pytestmark = pytest.mark.filterwarnings("ignore::interventions.attention_scale.EagerAttentionWarning")
CHOSEN = ("llama", "gpt2", "gemma2", "qwen3moe", "gptoss", "dsv3")
CELLS = [(family, name) for family in CHOSEN for name, case in CASES.items() if family in case.families]


def bare_of(case: Case, family: str) -> AdaptedModel:
    """A model of the case that no other test shares."""
    cached = adapter_model_of if case.model_of is adapter_model_of else model_of
    return cached.__wrapped__(family)


def on_device(value: Any) -> Any:
    """The same intervention with its tensors on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(DEVICE)
    if isinstance(value, dict):
        return {key: on_device(one) for key, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{field.name: on_device(getattr(value, field.name)) for field in fields(value) if field.init}
        )
    return value


def left_padded() -> Encoded:
    padded = ids().clone()
    padded[1, :6] = 0
    return Encoded(padded, (padded != 0).long())


def texts(model: AdaptedModel, new: int = 3) -> torch.Tensor:
    return model.generate_ids(left_padded(), max_new_tokens=new, min_new_tokens=new).cpu()


def said(model: AdaptedModel, recipe: iv.Recipe) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with recipe.applied(model):
        return model.forward(ids()).cpu(), model.forward(left_padded()).cpu()[:, -1], texts(model)


def agree(found: Any, wanted: Any) -> None:
    close(found[0], wanted[0], atol=2e-3)
    close(found[1], wanted[1], atol=2e-3)
    assert torch.equal(found[2], wanted[2])


@pytest.mark.parametrize(("family", "name"), CELLS)
def test_as_on_the_cpu(family: str, name: str, tmp_path: Path) -> None:
    case = CASES[name]
    own, model = bare_of(case, family), bare_of(case, family)
    recipe = iv.Recipe([case.make(own, [0, 1])])
    wanted = said(own, recipe)
    model.hf.to(DEVICE)
    before = model.forward(ids())
    agree(said(model, recipe), wanted)
    assert model.n_hooks == 0 and torch.equal(model.forward(ids()), before)
    with (recipe * 0).applied(model):
        assert torch.equal(model.forward(ids()), before)
    if name == "logit_shift":
        return
    there = iv.Recipe([on_device(intervention) for intervention in recipe])
    agree(said(model, there), wanted)
    agree(said(own, there), wanted)  # made on the device, used on the CPU
    if name not in ("patch", "patch_heads", "knob_swap"):
        loaded = iv.Recipe.load(there.save(tmp_path / "made-there.safetensors", model=model), own)
        assert loaded == recipe
        agree(said(own, loaded), wanted)
        agree(said(model, iv.Recipe.load(recipe.save(tmp_path / "made-here.safetensors"))), wanted)


def test_models_that_read_along_on_either_device(monkeypatch: pytest.MonkeyPatch) -> None:
    make, both = model_of.__wrapped__, small_pair.__wrapped__
    own = make("llama")
    wanted = said(own, iv.Recipe([iv.LogitShift(*both("llama"), strength=1.5)]))
    with models_moved(monkeypatch):
        model, there = make("llama"), both("llama")
    for big, small in ((model, there), (model, both("llama")), (own, there)):
        agree(said(big, iv.Recipe([iv.LogitShift(*small, strength=1.5)])), wanted)
        close(said(big, iv.Recipe([iv.LogitShift(*small, alpha=0.5, top_p=0.9)]))[0],
              said(own, iv.Recipe([iv.LogitShift(*both("llama"), alpha=0.5, top_p=0.9)]))[0], atol=2e-3)  # fmt: skip


def test_scopes_by_position_token_and_key() -> None:
    own, model = model_of.__wrapped__("llama"), model_of.__wrapped__("llama")
    model.hf.to(DEVICE)
    vector = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 3
    token = int(ids()[0, 5])
    places = ["all", "last", "prompt[2:5]", "generated", "last+generated", "prompt - last", iv.Where(tokens=(token,))]
    for place in places:
        recipe = iv.Recipe([iv.Offset(1, vector, positions=place, strength=torch.tensor([1.0, -2.0]))])
        agree(said(model, recipe), said(own, recipe))


def test_recipes_of_rows_and_sweeps() -> None:
    own, model = model_of.__wrapped__("qwen3moe"), model_of.__wrapped__("qwen3moe")
    model.hf.to(DEVICE)
    vector = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 3
    recipe = iv.Recipe([iv.Offset(1, vector), iv.ExpertSwitch(off=["L1E2"])])
    found, wanted = (
        iv.steered_texts(one, recipe, ["the quick", "a lazy dog"], [0.0, 1.0], max_new_tokens=4) for one in (model, own)
    )
    assert found == wanted
    with recipe.applied(model, trace=True) as trace:
        model.forward(ids())
    with recipe.applied(own, trace=True) as other:
        own.forward(ids())
    one, two = trace.frame(), other.frame()
    assert one.drop(columns="norm", errors="ignore").equals(two.drop(columns="norm", errors="ignore"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("logit_shift", "layer_scale_adapter")])
def test_in_half_precision_the_dtype_stays_and_nothing_is_left(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    model = bare_of(case, "qwen3moe" if "qwen3moe" in case.families else "llama")
    recipe = iv.Recipe([case.make(model, [0, 1])])
    model.hf.to(DEVICE, dtype)
    before = model.forward(ids())
    with recipe.applied(model):
        changed = model.forward(ids())
        texts(model)
    assert changed.dtype == dtype and bool(changed.isfinite().all()) and not torch.equal(changed, before)
    assert model.n_hooks == 0 and torch.equal(model.forward(ids()), before)


def test_a_recorded_run_is_patched_back(monkeypatch: pytest.MonkeyPatch) -> None:
    own, model = model_of.__wrapped__("llama"), model_of.__wrapped__("llama")
    model.hf.to(DEVICE)
    found = []
    for one in (model, own):
        patch = iv.Patch.from_run(one, one.encode(["the quick brown fox", "a lazy dog"]), 1, positions="last")
        with iv.Recipe([patch]).applied(one):
            found.append(one.forward(one.encode(["the quick brown dog", "a quick fox"])))
    close(found[0], found[1], atol=2e-3)


def head_recipe(width: int) -> iv.Recipe:
    generator = torch.Generator().manual_seed(5)
    return iv.Recipe([iv.HeadOffset({"L0H1": torch.randn(width, generator=generator)}), iv.HeadScale({"L2H3": 0.5})])


@pytest.mark.parametrize("where", ["model", "recipe", "both"])
def test_baked_weights(where: str, tmp_path: Path) -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer())
    recipe = head_recipe(16)
    if where != "recipe":
        model.hf.to(DEVICE)
    with recipe.applied(model):
        wanted = model.forward(ids())
    recipe = recipe if where == "model" else iv.Recipe([on_device(intervention) for intervention in recipe])
    with torch.no_grad():
        close(iv.baked(model, recipe)(ids().to(model.device)).logits, wanted, atol=2e-3)
    close(load_one(iv.bake(model, recipe, tmp_path / "baked"), device="cpu").forward(ids()), wanted, atol=2e-3)


def test_baked_ablations_and_adapters(tmp_path: Path) -> None:
    model = AdaptedModel(tiny_model("llama").to(DEVICE), tokenizer())
    directions = torch.randn(2, 64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    recipe = iv.Recipe([iv.ConceptAblation(layer, directions, site="resid_post") for layer in range(3)])
    with recipe.applied(model), pytest.raises(AssertionError):
        close(model.forward(ids()), AdaptedModel(tiny_model("llama"), tokenizer()).forward(ids()))
    with pytest.raises((NotSupported, UserError)):
        iv.baked(model, recipe)
    recipe = iv.Recipe([on_device(head_intervention) for head_intervention in head_recipe(16)][:1])
    folder = iv.to_adapter(model, recipe, tmp_path / "adapter")
    pair = load_pair(model.hf, folder, tokenizer=tokenizer(), check=False)
    with recipe.applied(pair.base):
        wanted = pair.base.forward(ids())
    close(pair.tuned.forward(ids()), wanted, atol=2e-3)


def test_control_vectors_go_to_gguf_and_back(tmp_path: Path) -> None:
    model = AdaptedModel(tiny_model("llama").to(DEVICE), tokenizer())
    vector = torch.randn(64, device="cpu", generator=torch.Generator().manual_seed(2)).to(DEVICE)
    recipe = iv.Recipe([iv.Offset(1, vector)])
    back = iv.from_gguf(iv.to_gguf(recipe, tmp_path / "v.gguf", model))
    assert torch.equal(next(iter(back)).vector.cpu(), vector.cpu())


def test_the_hub_is_one_per_model() -> None:
    """A model that moves keeps its hub and its map of sites."""
    model = model_of.__wrapped__("llama")
    hub = model.hub
    model.hf.to(DEVICE)
    assert isinstance(hub, Hub) and AdaptedModel(model.hf, tokenizer()).hub is hub


def test_every_family_takes_part_elsewhere() -> None:
    assert set(CHOSEN) <= set(FAMILIES) and set(CHOSEN) & set(MOE_FAMILIES)
