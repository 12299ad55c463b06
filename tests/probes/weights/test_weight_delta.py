"""weight_delta: heads by what they compute, LoRA factors against the dense product, files against loaded models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

import probes
from probes.results import ProbeResult
from probes.weights.collect import Collector
from probes.weights.naming import Layout, place_of
from probes.weights.sources import Factors, open_weights
from tests.tiny import FAMILIES, MOE_FAMILIES, tiny_model, token_batch, tuned_copy
from workbench.engine.families import submodule
from workbench.engine.resolving import family_of
from workbench.errors import UserError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing.*:FutureWarning", "ignore::UserWarning:peft.*"
)


def attention_inputs(model: Any, layer: int = 0) -> torch.Tensor:
    """z of one layer, [row, position, head, d_head], caught at the output projection."""
    family = family_of(model)
    seen: list[torch.Tensor] = []
    projection = submodule(model, f"{family.layers}.{layer}.{family.output}")
    handle = projection.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(token_batch())
    handle.remove()
    return seen[0].unflatten(-1, (model.config.num_attention_heads, -1))


def copy_of(model: Any) -> Any:
    same = type(model)(model.config).eval()
    same.load_state_dict(model.state_dict())
    return same


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rows_of_a_head_change_that_head_alone(family: str) -> None:
    """The oracle is the model: noise on the rows we call head 1 of q (or its key group) moves only its z."""
    model, layout = tiny_model(family), Layout.of(tiny_model(family).config.to_dict())
    before = attention_inputs(model)
    group = layout.n_heads // layout.n_kv_heads
    for name in [n for n, p in model.named_parameters() if p.ndim == 2 and place_of(n).layer == 0]:
        module = place_of(name).module
        for part in layout.head_rows(module, layout.oriented(module, model.get_parameter(name)).shape[0]):
            if family in ("olmo2", "olmoe") and part in ("q", "k"):
                continue  # these normalise q and k over all heads at once
            other = copy_of(model)
            with torch.no_grad():
                weight = layout.oriented(module, other.get_parameter(name))
                layout.split(module, weight)[part][1].add_(torch.randn(weight.shape[1]) * 0.3)
            moved = (attention_inputs(other) != before).flatten(0, 1).any(0).any(-1)
            shared = part in ("k", "v") and group > 1
            expected = {group + i for i in range(group)} if shared else {1}
            assert set(moved.nonzero().flatten().tolist()) == expected, (name, part)


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_heads_are_found_first(family: str) -> None:
    """Only head 2 of layer 1 is tuned: through q (or the family's fused form) and the output projection."""
    model = tiny_model(family)
    other = copy_of(model)
    layout = Layout.of(model.config.to_dict())
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            place = place_of(name)
            weight = layout.oriented(place.module, parameter)
            if place.layer != 1 or parameter.ndim != 2:
                continue
            if layout.is_output(place.module):
                width = weight.shape[1] // layout.n_heads
                weight[:, 2 * width : 3 * width].add_(torch.randn(weight.shape[0], width) * 0.05)
            elif "q" in layout.head_rows(place.module, weight.shape[0]):
                layout.split(place.module, weight)["q"][2].add_(torch.randn(weight.shape[1]) * 0.05)
    frame = probes.weight_delta(model, other).frame("head")
    assert (frame["layer"][0], frame["head"][0]) == (1, 2)
    assert frame["q"][0] == 0 and (frame["score"][1:] == 0).all() and (frame["q"][1:] == 1).all()
    assert 0 < frame["control"][0] < frame["score"][0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gptoss"])
def test_module_numbers_equal_a_dense_recomputation(family: str) -> None:
    model = tiny_model(family)
    other = tuned_copy(model)
    table = probes.weight_delta(model, other).table.set_index("name")
    after = other.state_dict()
    for name, parameter in model.state_dict().items():
        key = name.removeprefix("transformer.").removeprefix("model.")
        if key not in table.index:
            assert key == "lm_head.weight"  # tied to the embeddings, told once
            continue
        row = table.loc[key]
        w, t = parameter.double(), after[name].double()
        norm = float((t - w).norm() / w.norm())
        assert row["score"] == pytest.approx(norm, rel=1e-5, abs=1e-12)
        assert row["cosine"] == pytest.approx(float(torch.cosine_similarity(w.flatten(), t.flatten(), 0)), abs=1e-6)
        if parameter.ndim == 2 and norm > 0 and "experts" not in name:
            values = torch.linalg.svdvals(t - w)
            assert row["sigma_1"] == pytest.approx(float(values[0]), rel=1e-4)
            assert row["stable_rank"] == pytest.approx(float((values**2).sum() / values[0] ** 2), rel=1e-4)


def test_every_expert_is_measured_alone_and_the_planted_one_is_first() -> None:
    for family in MOE_FAMILIES:
        model = tiny_model(family)
        other = copy_of(model)
        with torch.no_grad():
            other.model.layers[2].mlp.experts.down_proj[5].add_(
                torch.randn_like(other.model.layers[2].mlp.experts.down_proj[5]) * 0.1
            )
        result = probes.weight_delta(model, other)
        best = result.frame("expert").iloc[0]
        assert (best["layer"], best["expert"]) == (2, 5) and best["q"] == 0
        assert (result.frame("expert")["score"][1:] == 0).all()


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_folders_give_the_same_as_loaded_models(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    other = tuned_copy(model)
    model.save_pretrained(tmp_path / "base")
    other.save_pretrained(tmp_path / "tuned")
    stored = probes.weight_delta(tmp_path / "base", tmp_path / "tuned")
    loaded = probes.weight_delta(model, other)
    for level in ("layer", "head"):
        np.testing.assert_allclose(stored.frame(level)["score"], loaded.frame(level)["score"], rtol=1e-6)
    if family == "mixtral":  # on disk experts are separate, in memory fused
        np.testing.assert_allclose(stored.frame("expert")["score"], loaded.frame("expert")["score"], rtol=1e-5)


def lora(model: Any, **changes: Any) -> Any:
    targets = ["q_proj", "k_proj", "o_proj", "down_proj"]
    torch.manual_seed(0)
    tuned = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": targets, **changes})).eval()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return tuned


@pytest.mark.parametrize(
    "changes",
    [{}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"o_proj": 3}}, {"use_dora": True}],
    ids=["plain", "patterns", "dora"],
)
def test_a_lora_gives_what_its_merged_model_gives(changes: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_model("llama")
    tuned = lora(tiny_model("llama"), **changes)
    tuned.save_pretrained(tmp_path)
    read = {"loaded": probes.weight_delta(tuned.get_base_model(), tuned)}
    if not changes.get("use_dora"):
        read["folder"] = probes.weight_delta(base, tmp_path)
    dense = probes.weight_delta(base, tuned.merge_and_unload())
    for how, result in read.items():
        expected = dense.table.set_index("name")
        for row in result.table.itertuples():
            truth = expected.loc[row.name]
            assert row.score == pytest.approx(truth["score"], rel=1e-3), (how, row.name)
            assert row.cosine == pytest.approx(truth["cosine"], abs=1e-5)
            assert row.stable_rank == pytest.approx(truth["stable_rank"], rel=1e-2, nan_ok=True)
            assert row.control == pytest.approx(truth["control"], rel=1e-3)
        keys = ["layer", "head", "module"]
        one, other = (r.head_parts.set_index(keys) for r in (result, dense))
        other = other.loc[one.index]
        for column, tolerance in (("score", 1e-3), ("cosine", 1e-4), ("sigma_1", 1e-3), ("stable_rank", 1e-2)):
            np.testing.assert_allclose(one[column], other[column], rtol=tolerance, err_msg=f"{how} {column}")


def test_what_an_adapter_leaves_alone_stands_in_the_table_unchanged(tmp_path: Path) -> None:
    """A LoRA on one output projection: it is what changed, and all else in the layers is exactly the base's."""
    base, tuned = tiny_model("llama"), lora(tiny_model("llama"), target_modules=["layers.1.self_attn.o_proj"])
    tuned.save_pretrained(tmp_path)
    for found in (probes.weight_delta(base, tmp_path), probes.weight_delta(tuned.get_base_model(), tuned)):
        first, *others = found.frame().itertuples()
        assert (first.layer, first.module, first.q) == (1, "self_attn.o_proj", 0.0) and first.score > 2 * first.control
        assert len(others) > 20 and all(row.score == 0.0 and row.q == 1.0 for row in others)
        assert set(found.layers.query("score > 0")["layer"]) == {1}


def test_a_pissa_pair_is_read_against_the_true_base() -> None:
    """PiSSA rewrites the base's own weights, so B A is not the change."""
    base, tuned = tiny_model("llama"), lora(tiny_model("llama"), init_lora_weights="pissa")
    found = probes.weight_delta(base, tuned)
    merged = tuned.merge_and_unload()
    truth = probes.weight_delta(base, merged).table.set_index("name")
    assert not found.factors.shape[0]
    for row in found.table.itertuples():
        assert row.score == pytest.approx(truth.loc[row.name, "score"], rel=1e-3, abs=1e-6)


class _Largest(TorchDispatchMode):
    """Remembers the number of entries of the largest tensor any operation returns."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return out


def test_the_product_of_lora_factors_is_never_formed() -> None:
    size, rank = 1200, 4
    collector = Collector(Layout(n_heads=4, n_kv_heads=2))
    change = Factors(torch.randn(size, rank), torch.randn(rank, size), 1.0)
    with _Largest() as largest:
        for module in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"):
            collector.add_factors(f"layers.0.{module}.weight", None, change)
    assert largest.entries <= 2 * size * rank
    assert len(collector.heads) == 8


def test_lora_factors_show_their_asymmetry() -> None:
    tuned = lora(tiny_model("llama"))
    fresh = probes.weight_delta(tuned.get_base_model(), tuned).factors
    # A was never trained: uniform start, norm sqrt(r / 3)
    assert fresh["a_over_start"].between(0.8, 1.2).all() and (fresh["b_norm"] > 0).all()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    zero = probes.weight_delta(tuned.get_base_model(), tuned)
    assert (zero.table["score"] == 0).all() and (zero.table["stable_rank"].dropna() == 0).all()
    assert (zero.factors["b_effective_rank"] == 0).all()


def test_a_model_against_itself_shows_nothing() -> None:
    result = probes.weight_delta(tiny_model("qwen3moe"), tiny_model("qwen3moe"))
    for level in ("module", "layer", "head", "expert"):
        frame = result.frame(level)
        assert (frame["score"] == 0).all() and (frame["control"] == 0).all() and (frame["q"] == 1).all()


def test_false_discoveries_among_equally_tuned_heads_stay_rare() -> None:
    base = tiny_model("llama")
    hits = [int((probes.weight_delta(base, tuned_copy(base, seed=seed)).heads["q"] < 0.05).any()) for seed in range(20)]
    assert sum(hits) <= 1


def test_a_grown_vocabulary_is_compared_where_both_have_it() -> None:
    base, tuned = tiny_model("llama"), tiny_model("llama")
    tuned.resize_token_embeddings(310, mean_resizing=False)
    result = probes.weight_delta(base, tuned)
    assert (result.table["score"] == 0).all()
    assert any(name.startswith("embed_tokens") and name.endswith("[300:]") for name in result.unmatched)


def test_results_come_back_from_their_file_and_draw(tmp_path: Path) -> None:
    base = tiny_model("mixtral")
    result = probes.weight_delta(base, tuned_copy(base))
    again = ProbeResult.load(result.save(tmp_path / "r"))
    assert type(again) is probes.WeightDelta
    for level in ("module", "layer", "head", "expert", "head_part"):
        assert again.frame(level).equals(result.frame(level)) or level != "module"
        assert again.figure(level).to_dict()["data"]
    assert "layers.0" in result.summary() or "most changed" in result.summary()
    assert set(again.directions) == set(result.directions)


def test_what_cannot_be_compared_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Give both models"):
        probes.weight_delta(tiny_model("llama"))
    with pytest.raises(UserError, match="share only"):
        probes.weight_delta(tiny_model("llama"), tiny_model("neox"))
    with pytest.raises(UserError, match="no expert to show"):
        probes.weight_delta(tiny_model("llama"), tiny_model("llama")).frame("expert")
    lora(tiny_model("llama")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="base model first"):
        open_weights(tmp_path, tmp_path)
