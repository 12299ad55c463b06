"""Concept directions: planted ones found and read, dictionaries read as they are, recipes that remove them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from probes.concepts.dictionary import Dictionary
from probes.concepts.probe import ConceptDirections, concept_directions
from tests.tiny import tiny_model, tokenizer
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.recording.recording import Recording

D, PROMPTS, LENGTH = 64, 30, 6
U, V = torch.linalg.qr(torch.randn(D, 2, generator=torch.Generator().manual_seed(9))).Q.T


def recording(seed: int = 0) -> Recording:
    """Tuning adds 3 along U on every token, and a random amount (sd 1.5) along V on tokens called " bad"."""
    random = torch.Generator().manual_seed(seed)
    rows = PROMPTS * LENGTH
    bad = torch.arange(rows) % LENGTH == 4
    base = torch.randn(rows, D, generator=random)
    tuned = base + 0.2 * torch.randn(rows, D, generator=random) + 3 * U
    tuned += (bad * 4 * torch.randn(rows, generator=random))[:, None] * V
    label = torch.arange(rows) // LENGTH % 2 == 0
    tuned += (2.0 * label - 1)[:, None] * torch.nn.functional.one_hot(torch.tensor(7), D)
    index = pd.DataFrame(
        {
            "prompt": np.arange(rows) // LENGTH,
            "position": np.arange(rows) % LENGTH,
            "token": [" bad" if value else f" w{row % LENGTH}" for row, value in enumerate(bad.tolist())],
            "label": ["yes" if value else "no" for value in label.tolist()],
        }
    )
    site = "blocks.1.hook_resid_post"
    config = {"roles": ["base", "tuned"], "sites": [site], "n_prompts": PROMPTS}
    return Recording(index, config, {"base": {site: base}, "tuned": {site: tuned}})


def cosine(found: ConceptDirections, place: int, direction: torch.Tensor) -> float:
    return abs(float(found.directions[place] @ direction))


@pytest.mark.parametrize(
    ("method", "shift", "message"),
    [("pca", 0.0, "the same on every row"), ("pca", 3.0, "method='mean' reads"), ("pca-uncentred", 0.0, "0 on every")],
)
def test_a_change_without_directions_is_nothing_to_find(method: str, shift: float, message: str) -> None:
    made = recording()
    site = made.sites[0]
    base = torch.zeros(PROMPTS * LENGTH, D)
    one = Recording(made.index, made.config, {"base": {site: base}, "tuned": {site: base + shift * U}})
    with pytest.raises(UserError, match=f"Nothing to find: .* of layer 1 .*{message}"):
        concept_directions(one, method)
    assert len(concept_directions(one, "mean").frame()) == 1


def test_centring_takes_the_mean_direction_out() -> None:
    mean = concept_directions(recording(), "mean")
    assert cosine(mean, 0, U) > 0.99 and mean.table["q"][0] < 0.01 and mean.table["score"][0] > 0.5
    assert cosine(concept_directions(recording(), "pca-uncentred", k=2), 0, U) > 0.98
    centred = concept_directions(recording(), "pca", k=3)
    assert cosine(centred, 0, V) > 0.98 and all(cosine(centred, place, U) < 0.2 for place in range(3))
    assert centred.table["control"].max() < 0.05


def test_of_several_layers_the_middle_one_unless_asked() -> None:
    one = recording()
    site = one.sites[0]
    names = [site.replace("1", str(layer)) for layer in (0, 2, 3)]
    several = Recording(
        one.index,
        {**one.config, "sites": names},
        {role: {name: one[role][site][:] for name in names} for role in one.roles},
    )
    assert concept_directions(several, "mean").layer == 2
    assert concept_directions(several, "mean", layer=3).layer == 3
    with pytest.raises(UserError, match=r"of layer 1, and the recording has blocks\.0\.hook_resid_post"):
        concept_directions(several, "mean", layer=1)


def test_its_strongest_contexts_show_the_concept() -> None:
    found = concept_directions(recording(), "pca", k=1, examples=4)
    shown = found.contexts[found.contexts["end"] == "highest"]
    assert len(shown) == 4 and shown["context"].str.contains("» bad«").all() and shown["prompt"].is_unique
    assert shown["context"].iloc[0].startswith(" w0 w1") and "» bad«" in found.describe(0)


@pytest.mark.parametrize("method", ["labels-mean", "labels-probe"])
def test_directions_of_labels(method: str) -> None:
    found = concept_directions(recording(), method)
    assert float(found.directions[0, 7]) > 0.5, "it points to the class that sorts last"


def folder(path: Path, architecture: str = "jumprelu", **config: Any) -> Path:
    """A dictionary whose latent 2 is U and latent 5 is V."""
    random = torch.Generator().manual_seed(3)
    decoder = torch.nn.functional.normalize(torch.randn(8, D, generator=random), dim=-1)
    decoder[2], decoder[5] = U, 2 * V
    weights = {"W_enc": decoder.T.contiguous(), "W_dec": decoder, "b_dec": 0.1 * torch.ones(D), "b_enc": torch.zeros(8)}
    if architecture == "jumprelu":
        weights["threshold"] = torch.full((8,), 0.5)
    if architecture == "gated":
        weights |= {"b_gate": torch.zeros(8), "b_mag": torch.ones(8), "r_mag": torch.full((8,), 0.3)}
    path.mkdir(exist_ok=True)
    save_file(weights, path / "sae_weights.safetensors")
    (path / "cfg.json").write_text(json.dumps({"architecture": architecture, "d_in": D, "d_sae": 8, **config}))
    return path


def test_a_saelens_folder_is_read_directly(tmp_path: Path) -> None:
    path = folder(tmp_path / "sae", metadata={"hook_name": "blocks.1.hook_resid_post"})
    found = concept_directions(recording(), "sae", k=3, dictionary=path)
    assert found.latents is not None and found.latents[0] == 2 and cosine(found, 0, U) > 0.999
    assert found.table["latent"].tolist() == found.latents
    assert Dictionary.load(path).site == Site("resid_post", 1)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk", "gated"])
def test_encoders_by_hand(tmp_path: Path, architecture: str) -> None:
    sae = Dictionary.load(folder(tmp_path / "sae", architecture, k=2, apply_b_dec_to_input=False))
    x = torch.randn(5, D)
    w, before = sae.weights, x @ sae.weights["W_enc"]
    expected = before.relu()
    if architecture == "jumprelu":
        expected = torch.where(before > 0.5, before, 0.0)
    elif architecture == "topk":
        expected = torch.where(before >= before.topk(2).values[:, -1:], before.relu(), 0.0)
    elif architecture == "gated":
        expected = (before > 0) * (before * w["r_mag"].exp() + 1).relu()
    assert torch.allclose(sae.encode(x), expected, atol=1e-5)
    shifted = Dictionary.load(folder(tmp_path / "sae", architecture, k=2))
    assert torch.allclose(shifted.encode(x + w["b_dec"]), expected, atol=1e-5)


def test_old_and_rescaled_topk(tmp_path: Path) -> None:
    old = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 1}, "rescale_acts_by_decoder_norm": True}
    sae = Dictionary.load(folder(tmp_path / "sae", "standard", apply_b_dec_to_input=False, **old))
    assert sae.architecture == "topk" and sae.k == 1
    active = sae.encode(V[None])
    assert active.nonzero().tolist() == [[0, 5]] and active[0, 5].item() == pytest.approx(4.0, abs=1e-4)


def test_bad_dictionaries(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no cfg\.json"):
        Dictionary.load(tmp_path)
    with pytest.raises(NotSupported, match="temporal"):
        folder(tmp_path / "a", "standard", architecture_="x")
        (tmp_path / "a" / "cfg.json").write_text('{"architecture": "temporal"}')
        Dictionary.load(tmp_path / "a")
    with pytest.raises(NotSupported, match="expected_average_only_in"):
        Dictionary.load(folder(tmp_path / "b", normalize_activations="expected_average_only_in"))
    path = folder(tmp_path / "c")
    (path / "sae_weights.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="damaged"):
        Dictionary.load(path)
    with pytest.raises(UserError, match="lacks threshold"):
        bare = folder(tmp_path / "d", "standard")
        (bare / "cfg.json").write_text('{"architecture": "jumprelu"}')
        Dictionary.load(bare)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "pcaa"}, "Unknown method"),
        ({"method": "sae"}, "needs a dictionary"),
        ({"layer": 2}, "residual site of layer 2"),
        ({"method": "labels-mean", "labels": ["a"] * PROMPTS}, "have 1"),
    ],
)
def test_bad_requests(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        concept_directions(recording(), **options)


def test_the_recipe_removes_what_was_chosen(tmp_path: Path) -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer(), role="model")
    found = concept_directions(recording(), "pca", k=2, model=model)
    assert found.table["up"].str.len().min() > 0
    back = ConceptDirections.load(found.save(tmp_path / "concepts"))
    assert "random directions" in back.figure().to_json()
    kept: list[torch.Tensor] = []
    read = SiteHook(Site("resid_post", 1), lambda value, ctx: kept.append(value))
    with back.recipe([0]).applied(model), model.hooked([read]):
        model.forward(torch.randint(4, 200, (2, 5)))
    assert (kept[0] @ back.directions[0]).abs().max() < 1e-5 < (kept[0] @ back.directions[1]).abs().max()
    with back.recipe([0, 1], to="mean").applied(model), model.hooked([read]):
        model.forward(torch.randint(4, 200, (2, 5)))
    assert torch.allclose(kept[1] @ back.directions.T, (back.mean @ back.directions.T).expand(2, 5, 2), atol=1e-5)
    with pytest.raises(UserError, match="Choose directions"):
        back.recipe([2])
