"""Recipes: algebra, files, order, rows, traces, contradictions; nothing is touched before everything is checked."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import safe_open, save_file

import interventions as iv
from tests.interventions.registered_cases import registered_cases
from tests.interventions.zoo import ids, model_of, noise, small_pair
from tests.tiny import tiny_model, tokenizer
from workbench.engine.families import submodule
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::interventions.attention_scale.EagerAttentionWarning")

CASES = registered_cases()
OTHER_MODELS: dict[str, Callable[[Any, AdaptedModel, AdaptedModel], Any]] = {
    "logit_shift": lambda one, tuned, base: one.with_models(tuned, base),
    "logit_mix": lambda one, tuned, base: one.with_models(a=tuned, b=base),
    "logit_fusion": lambda one, tuned, base: one.with_models(base, a=tuned, b=tuned),
}
"""Interventions that read along with other models -> the same with those at hand again."""


def everything(family: str = "qwen3moe") -> iv.Recipe:
    """One of each intervention that can act on a plain forward pass of two rows, on different places."""
    model = model_of(family)
    names = ("offset_rows", "head_offset", "head_scale", "ablation", "clamp", "attention_scale", "expert_replace")
    return iv.Recipe([CASES[name].make(model, [0, 1]) for name in names])


def applied(model: AdaptedModel, recipe: iv.Recipe) -> torch.Tensor:
    with recipe.applied(model):
        return model.forward(ids())


def test_algebra() -> None:
    a, b = iv.Recipe([iv.Offset(1, noise(64))]), iv.Recipe([iv.HeadScale({"L0H1": 0.0})])
    assert a + b == iv.Recipe([*a, *b]) and a + b != b + a
    assert (a + b) * 0.5 == 0.5 * a + 0.5 * b
    assert a * 2 != a and hash(a * 2 * 0.5) == hash(a)
    assert a == iv.Recipe([iv.Offset(1, noise(64).clone())]) and a != iv.Recipe([iv.Offset(1, noise(64, seed=1))])
    assert len(a + b) == 2 and len({a, a * 1, b}) == 2
    assert "Offset(" in repr(a) and "<64, norm" in repr(a) and len(repr(everything())) < 1500


@pytest.mark.parametrize("name", CASES)
def test_file_round_trip(name: str, tmp_path: Path) -> None:
    model = CASES[name].model_of("mixtral" if "expert" in name else "llama")
    recipe = iv.Recipe([CASES[name].make(model, [0, 1])])
    path = recipe.save(tmp_path / "r.safetensors", model=model)
    if name in OTHER_MODELS:  # the file names its other models, and has to be given them
        loaded = iv.Recipe.load(path)
        loaded = iv.Recipe([OTHER_MODELS[name](part, *small_pair("llama")) for part in loaded], loaded.made_with)
    else:
        loaded = iv.Recipe.load(path, model, strict=True)
    assert loaded == recipe
    assert torch.equal(applied(model, loaded), applied(model, recipe))
    assert loaded.made_with["model"]["identity"] == model.identity.hash
    again = loaded.save(tmp_path / "again.safetensors")
    assert again.read_bytes() == (tmp_path / "r.safetensors").read_bytes()


def test_bit_equal_in_a_fresh_process(tmp_path: Path) -> None:
    model, recipe = model_of("qwen3moe"), everything()
    recipe.save(tmp_path / "r.safetensors", model=model)
    ours = applied(model, recipe)
    script = (
        "import sys, torch, warnings; warnings.simplefilter('ignore')\n"
        "import interventions as iv\n"
        "from tests.tiny import tiny_model, token_batch, tokenizer\n"
        "from workbench.models.adapted import AdaptedModel\n"
        "from safetensors.torch import save_file\n"
        "model = AdaptedModel(tiny_model('qwen3moe'), tokenizer())\n"
        "with iv.Recipe.load(sys.argv[1], model, strict=True).applied(model):\n"
        "    save_file({'logits': model.forward(token_batch(2, 20, seed=4)).contiguous()}, sys.argv[2])\n"
    )
    out = tmp_path / "logits.safetensors"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "r.safetensors"), str(out)], check=True, cwd=ROOT, env=env
    )
    with safe_open(out, framework="pt") as file:
        assert torch.equal(file.get_tensor("logits"), ours)


def test_file_is_one_safetensors_with_json(tmp_path: Path) -> None:
    path = iv.Recipe([iv.Offset(1, noise(64), positions=slice(2, -1))]).save(tmp_path / "r.safetensors")
    with safe_open(path, framework="pt") as file:
        note = json.loads(file.metadata()["tunescope"])
        assert torch.equal(file.get_tensor("0.vector"), noise(64))
    assert set(note) == {"version", "interventions", "made_with"}
    assert [intervention["kind"] for intervention in note["interventions"]] == ["Offset"]
    assert list(tmp_path.iterdir()) == [path]


def rewritten(path: Path, change: Any, extra: dict[str, torch.Tensor] | None = None) -> Path:
    """The recipe file with its JSON changed."""
    with safe_open(path, framework="pt") as file:
        note = json.loads(file.metadata()["tunescope"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    change(note)
    target = path.with_name("changed.safetensors")
    save_file({**tensors, **(extra or {})}, target, metadata={"tunescope": json.dumps(note)})
    return target


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda note: note.update(version=2), "update Tunescope"),
        (lambda note: note.update(autor="me"), "key in the recipe file 'autor'"),
        (lambda note: note["interventions"][0].update(kind="Ofset"), "Did you mean 'Offset'"),
        (lambda note: note["interventions"][0].update(kind="SiteIntervention"), "kind of intervention"),
        (lambda note: note["interventions"][0]["settings"].update(colour=1), "setting of Offset 'colour'"),
        (lambda note: note["interventions"][0]["settings"].pop("layer"), "lacks its setting 'layer'"),
        (lambda note: note["interventions"][0]["settings"]["vector"].update({"@tensor": "w"}), "'w'"),
        (lambda note: note.update(interventions={}), "no list"),
        (lambda note: note["interventions"].pop(), "no intervention uses"),
    ],
)
def test_foreign_content_is_refused(change: Any, reason: str, tmp_path: Path) -> None:
    path = iv.Recipe([iv.Offset(1, noise(64))]).save(tmp_path / "r.safetensors")
    with pytest.raises(UserError, match=reason):
        iv.Recipe.load(rewritten(path, change))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = iv.Recipe([iv.Offset(1, noise(64))]).save(tmp_path / "r.safetensors")
    with pytest.raises(UserError, match="no intervention uses"):
        iv.Recipe.load(rewritten(path, lambda note: None, {"stray": torch.zeros(1)}))
    with pytest.raises(UserError, match=r"tensor 0\.stray"):
        iv.Recipe.load(rewritten(path, lambda note: None, {"0.stray": torch.zeros(1)}))
    content = path.read_bytes()
    for length in (0, 5, 40, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="not a whole safetensors file"):
            iv.Recipe.load(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="pickle"):
        iv.Recipe.load(path)
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(UserError, match="pickle"):
        iv.Recipe.load(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(UserError, match="no recipe"):
        iv.Recipe.load(path)
    with pytest.raises(UserError, match="There is no recipe"):
        iv.Recipe.load(tmp_path / "absent.safetensors")


def test_no_length_of_the_header_is_taken_for_a_pickle(tmp_path: Path) -> None:
    """A safetensors file begins with that length, and a pickle with 0x80; a longer note makes every first byte."""
    recipe, path = iv.Recipe([iv.Offset(1, torch.arange(64.0))]), tmp_path / "recipe.safetensors"
    recipe.save(path)
    first = set()
    for more in range(0, 264, 8):
        longer = rewritten(path, lambda note, more=more: note["made_with"].update(more="x" * more))
        first.add(longer.read_bytes()[0])
        assert iv.Recipe.load(longer) == recipe
    assert 0x80 in first


def test_nan_in_a_file_is_refused(tmp_path: Path) -> None:
    path = iv.Recipe([iv.Offset(1, noise(64))]).save(tmp_path / "r.safetensors")
    broken = rewritten(path, lambda note: None, {"0.vector": torch.full((64,), float("nan"))})
    with pytest.raises(UserError, match="NaN"):
        iv.Recipe.load(broken)


def test_made_for_another_model(tmp_path: Path) -> None:
    llama = model_of("llama")
    path = iv.Recipe([iv.Offset(1, noise(64))]).save(tmp_path / "r.safetensors", model=llama)
    with pytest.raises(UserError, match="d_head 16, but qwen3 has 32"):
        iv.Recipe.load(path, model_of("qwen3"))
    with pytest.raises(UserError, match="d_head"):
        iv.Recipe.load(path).check(model_of("qwen3"))
    other = AdaptedModel(tiny_model("llama", seed=5), tokenizer(), name="other")
    with pytest.warns(iv.OtherModelWarning, match="other weights"):
        iv.Recipe.load(path, other)
    with pytest.raises(UserError, match="without strict"):
        iv.Recipe.load(path, other, strict=True)


def test_order_counts() -> None:
    model = model_of("llama")
    offset, ablation = iv.Offset(1, noise(64)), iv.ConceptAblation(1, noise(64))
    first, last = applied(model, iv.Recipe([offset, ablation])), applied(model, iv.Recipe([ablation, offset]))
    torch.testing.assert_close(first, applied(model, iv.Recipe([ablation])), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(first, last, atol=1e-2)
    with iv.Recipe([offset]).applied(model), iv.Recipe([ablation]).applied(model):
        assert torch.equal(model.forward(ids()), first)


def test_nothing_is_touched_before_all_is_checked() -> None:
    model = model_of("llama")
    recipe = iv.Recipe([iv.Offset(1, noise(64)), iv.Offset(9, noise(64))])
    with pytest.raises(UserError, match=r"Offset \(number 1 of the recipe\): Layer 9"), recipe.applied(model):
        pass
    assert model.n_hooks == 0


def test_every_row_its_own_recipe() -> None:
    model = model_of("llama")
    a = iv.Recipe([iv.Offset(1, noise(64)), iv.ConceptAblation(1, noise(2, 64))])
    b = iv.Recipe([iv.ConceptAblation(1, noise(2, 64)), iv.Offset(1, noise(64))])
    batch = ids()[:1].repeat(4, 1)
    with iv.per_row([a, None, b, a]).applied(model):
        together = model.forward(batch)
    for row, recipe in enumerate((a, iv.Recipe(), b, a)):
        with recipe.applied(model):
            alone = model.forward(batch)[row]
        assert torch.equal(together[row], alone)
    assert len(iv.per_row([a, None, b, a])) == 4, "equal recipes are applied once"
    with pytest.raises(UserError, match="already names its rows"):
        iv.per_row([iv.Offset(1, noise(64), positions=iv.Where(rows=(True,)))])


def test_trace() -> None:
    model = model_of("llama")
    recipe = iv.Recipe([
        iv.Offset(1, noise(64), strength=[2.0, 0.0], positions="last"),
        iv.HeadScale({"L2H1": 0.0}, positions="prompt[2:4]"),
    ])  # fmt: skip
    with recipe.applied(model, trace=True) as trace:
        model.forward(ids())
        model.forward(ids())
    frame = trace.frame()
    offset = frame[frame["kind"] == "Offset"]
    assert offset[["intervention", "layer", "row", "position", "times"]].values.tolist() == [[0, 1, 0, 19, 2]]
    torch.testing.assert_close(float(offset["norm"].iloc[0]), float(2 * noise(64).norm()), rtol=1e-4, atol=1e-4)
    heads = frame[frame["kind"] == "HeadScale"]
    assert heads[["layer", "row", "position"]].values.tolist() == [[2, 0, 2], [2, 0, 3], [2, 1, 2], [2, 1, 3]]
    assert set(heads["site"]) == {"blocks.2.attn.hook_z"}
    with recipe.applied(model) as silent:
        model.forward(ids())
    assert len(silent) == 0 and silent.frame().empty


def test_trace_of_routing_and_attention() -> None:
    model = model_of("mixtral")
    recipe = iv.Recipe([
        iv.ExpertSwitch(["L1E1"]),
        iv.AttentionScale(2.0, ["L0H1"], keys="first", positions="prompt - first"),
    ])  # fmt: skip
    with recipe.applied(model, trace=True) as trace:
        model.forward(ids())
    frame = trace.frame()
    assert 0 < len(frame[frame["kind"] == "ExpertSwitch"]) < ids().numel()
    attention = frame[frame["kind"] == "AttentionScale"]
    assert sorted(set(attention["position"])) == list(range(1, 20))


def test_trace_of_what_acts_beside_sites() -> None:
    model = model_of("llama")
    path = "model.layers.1.self_attn.q_proj"
    width = submodule(model.inner, path).weight.shape
    recipe = iv.Recipe([
        iv.TokenRules(biases={"#7": 3.0}, positions="last", strength=[1.0, 0.0]),
        iv.ActivationThreshold({1: 0.5}, rule="wina", positions="prompt[2:4]"),
        iv.ActivationThreshold({2: 0.5}, rule="cats", positions="last"),
        iv.AdapterRouting(["a"], {path: noise(1, 2, width[1])}, {path: noise(1, width[0], 2)}, positions="first"),
    ])  # fmt: skip
    with recipe.applied(model, trace=True) as trace:
        model.forward(ids())
    where = {
        number: sorted({tuple(place) for place in part[["kind", "layer", "site", "row", "position"]].values.tolist()})
        for number, part in trace.frame().groupby("intervention")
    }
    assert where == {
        0: [("TokenRules", -1, "logits", 0, 19)],
        1: [("ActivationThreshold", 1, "blocks.1.mlp.hook_post", row, place) for row in (0, 1) for place in (2, 3)],
        2: [("ActivationThreshold", 2, "blocks.2.mlp.hook_post", row, 19) for row in (0, 1)],
        3: [("AdapterRouting", 1, path, row, 0) for row in (0, 1)],
    }
    moved = trace.frame().iloc[0]["norm"]
    with recipe.applied(model) as silent:
        model.forward(ids())
    assert 0 < moved < 1 and len(silent) == 0


def test_contradictions() -> None:
    model, u = model_of("llama"), noise(64)
    knob = iv.SubspaceKnob(1, u, 1.0)
    for other in (
        iv.SubspaceKnob(1, -2 * u, 1.0),
        iv.SubspaceKnob(1, torch.stack([noise(64, seed=1), u + 0.5 * noise(64, seed=1)]), 0.0, positions="last"),
        iv.Clamp(1, u, 0.0, 0.0),
    ):
        with pytest.raises(UserError, match="contradict"):
            iv.Recipe([knob, other]).check(model)
    with pytest.raises(UserError, match="contradict"):
        iv.Recipe([iv.Patch(1, noise(4, 16), "z"), iv.Patch(1, noise(1, 16), "z", heads=[2])]).check(model)
    for fine in (
        iv.SubspaceKnob(2, u, 2.0),
        iv.SubspaceKnob(1, noise(64, seed=1), 2.0),
        iv.SubspaceKnob(1, u, 2.0, mode="add"),
        iv.Clamp(1, u, 0.0, 2.0),
        iv.SubspaceKnob(1, u, 2.0, positions=iv.Where(rows=(False, True))),
    ):
        first = iv.SubspaceKnob(1, u, 1.0, positions=iv.Where(rows=(True, False)))
        iv.Recipe([first if isinstance(fine.positions, iv.Where) else knob, fine]).check(model)
    iv.Recipe([
        iv.SubspaceKnob(1, u, 1.0, positions="prompt"), iv.SubspaceKnob(1, u, 2.0, positions="generated")
    ]).check(model)  # fmt: skip


def test_functions_of_tokens_work_but_are_not_saved(tmp_path: Path) -> None:
    model = model_of("llama")
    recipe = iv.Recipe([iv.Offset(1, noise(64), positions=lambda tokens: tokens > 150)])
    with recipe.applied(model, trace=True) as trace:
        model.forward(ids())
    assert len(trace.frame()) == int((ids() > 150).sum())
    with pytest.raises(NotSupported, match="cannot be saved"):
        recipe.save(tmp_path / "r.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_plain_hugging_face_model_and_a_pair(tmp_path: Path) -> None:
    hf = tiny_model("llama")
    recipe = iv.Recipe([iv.Offset(1, noise(64))])
    with recipe.applied(hf), torch.no_grad():
        ours = hf(ids(), use_cache=False).logits
    assert torch.equal(ours, applied(AdaptedModel(hf, tokenizer()), recipe))

    class Pair:
        base = tuned = model_of("llama")

    with pytest.raises(UserError, match=r"pair\.base or pair\.tuned"), recipe.applied(Pair()):
        pass


def test_norm_units_are_measured() -> None:
    model = model_of("llama")
    size = iv.mean_norm(model, ids(), 1, positions="all")
    kept: list[torch.Tensor] = []
    handle = model.inner.model.layers[1].register_forward_hook(lambda m, args, out: kept.append(out))
    model.forward(ids())
    handle.remove()
    assert size == pytest.approx(float(kept[0].norm(dim=-1).mean()), rel=1e-5)
    assert iv.mean_norm(model, ids(), 1) == pytest.approx(float(kept[0][:, 1:].norm(dim=-1).mean()), rel=1e-5)
    with pytest.raises(UserError, match="No position"):
        iv.mean_norm(model, ids()[:, :1], 1)


def test_importing_is_light() -> None:
    code = "import interventions, sys; assert 'torch' not in sys.modules; assert 'Offset' in dir(interventions)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_expanded_numbers_are_saved(tmp_path: Path) -> None:
    """One number seen through ``expand`` has no bytes of its own in a row; it is written all the same."""
    recipe = iv.Recipe([iv.SubspaceKnob(1, noise(64), torch.tensor(3.0).expand(1))])
    assert iv.Recipe.load(recipe.save(tmp_path / "r.safetensors")) == recipe
