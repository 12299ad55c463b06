"""The public patching call: normalisation both ways, tuned heads found, prefilter confirmed, files, figures, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch

from probes.patches.patching import patching
from probes.patches.result import Patching
from probes.patches.task import make_task
from tests.probes.test_patching import Pair, pair_of, prompts
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.prompts import Prompts
from workbench.stats.fdr import q_values
from workbench.stats.tests import paired_permutation

TUNED = ((1, 0), (1, 3), (2, 2))


def rows(n: int = 24) -> Prompts:
    words = ["fox", "dog", "the", "quick", "lazy", "brown"]
    return Prompts.of([
        {
            "prompt": f"{words[i % 6]} {words[(1 + i + i // 6) % 6]} {'xyzq'[i % 4]}",
            "answer": " over", "distractor": " dog",
        }
        for i in range(n)
    ])  # fmt: skip


def pair_with_tuned_heads(part: str) -> Pair:
    """Only the q rows (or o_proj columns) of three heads changed; heads have width 16."""
    base, tuned = tiny_model("llama"), tiny_model("llama")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer, head in TUNED:
            attention, rows_of = tuned.model.layers[layer].self_attn, slice(16 * head, 16 * head + 16)
            if part == "q":
                weight = attention.q_proj.weight[rows_of]
                weight += torch.randn(weight.shape, generator=generator) * 0.5
            else:
                weight = attention.o_proj.weight[:, rows_of]
                weight += torch.randn(weight.shape, generator=generator) * 0.3
    return Pair(base, tuned)


@pytest.mark.parametrize(("part", "what"), [("q", "z"), ("q", "write"), ("o", "write")])
def test_on_the_targets_inputs_exactly_the_tuned_heads_score(part: str, what: str) -> None:
    found = patching(pair_with_tuned_heads(part), rows(), what=what, inputs="target", metric="kl", together=0)
    cells = found.frame()
    changed = cells[cells.effect.abs() > 1e-5]
    assert {(int(layer), int(head)) for layer, head in zip(changed.layer, changed["head"], strict=True)} == set(TUNED)
    assert (changed.q < 0.05).sum() >= 2 and (cells[cells.effect.abs() <= 1e-5].score.abs() < 1e-3).all()


@pytest.mark.parametrize("part", ["q", "o"])
def test_on_the_targets_inputs_attention_is_seen_beside_mlps(part: str) -> None:
    """Supplying what the MLPs read is done at the attention's output, which must not hide what the attention says."""
    pair = pair_with_tuned_heads(part)
    options = {"inputs": "target", "metric": "kl", "positions": "last", "normalise": False}
    alone = patching(pair, rows(8), ["attn_out"], **options).table
    both = patching(pair, rows(8), ["attn_out", "mlp_out"], **options).table
    attention, mlps = both[both.module == "attn_out"], both[both.module == "mlp_out"]
    assert attention.effect.to_numpy() == pytest.approx(alone.effect.to_numpy(), abs=1e-7)
    tuned = sorted({layer for layer, _ in TUNED})
    assert sorted(attention[attention.effect.abs() > 1e-5].layer) == tuned and (mlps.effect.abs() < 1e-5).all()


def test_z_cannot_see_a_tuned_output_projection() -> None:
    pair = pair_with_tuned_heads("o")
    found = patching(pair, rows(8), what="z", inputs="target", metric="prob", normalise=False, together=0)
    assert found.table.effect.abs().max() < 1e-6


def test_scores_are_shares_of_the_way_and_noising_turns_the_scale() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer(), role="model")
    # the residual before layer 0 at every position is the whole clean prompt: 1 by definition
    given = prompts(12)
    clean = patching(model, given, sites="resid", positions="all", layers=[0], metric="prob", normalise=False)
    assert clean.table.effect[0] == pytest.approx(clean.source_value[0] - clean.target_value[0], abs=1e-6)
    kl = {"metric": "kl", "positions": "all", "layers": [0, 1]}
    there = patching(model, given, sites=["resid_pre", "attn_out"], **kl)
    back = patching(model, given, sites=["resid_pre", "attn_out"], source="corrupted", target="clean", **kl)
    whole = there.table[(there.table.layer == 0) & (there.table.module == "resid_pre")].iloc[0]
    broken = back.table[(back.table.layer == 0) & (back.table.module == "resid_pre")].iloc[0]
    assert whole.score == whole.restored == pytest.approx(1.0, abs=1e-4)
    assert broken.score == pytest.approx(1.0, abs=1e-4) and broken.restored == pytest.approx(0.0, abs=1e-4)
    assert there.scale == "kl: 0 = corrupted, 1 = clean" and back.scale == "kl: 0 = clean, 1 = corrupted"
    assert there.source_value[0] == 0 and there.target_value[0] > 0


def test_the_prefilter_confirms_its_leading_cells_exactly() -> None:
    pair = pair_of("qwen2", size=0.03)
    exact = patching(pair, rows(12), metric="kl", together=0)
    for method in ("attribution", "ig"):
        found = patching(pair, rows(12), metric="kl", method=method, confirm=0.25, together=0)
        assert found.table.exact.sum() == 4 and found.provenance.backward_passes >= 1
        confirmed = found.table[found.table.confirmed == "leading"]
        assert confirmed.score.to_numpy() == pytest.approx(exact.table.score[confirmed.index].to_numpy(), abs=1e-4)
        assert set(found.table.attribution.abs().nlargest(3).index) == set(confirmed.index)
        assert np.corrcoef(found.table.attribution, exact.table.score)[0, 1] > 0.7


def test_the_best_heads_together_beat_random_heads(tmp_path: object) -> None:
    pair = pair_with_tuned_heads("q")
    found = patching(pair, rows(), metric="kl", inputs="target", together=3)
    last = found.together.iloc[-1]
    assert last["count"] == 3 and last.score > last.control_high and "together" in found.control
    back = Patching.load(found.save(f"{tmp_path}/patch"))
    assert back.frame().equals(found.frame()) and back.together.equals(found.together)
    assert "0 = as base, 1 = as tuned" in found.figure().data[0].colorbar.title.text.replace("<br>", " ")
    assert len(found.together_figure().data) == 3 and "n = 24" in found.figure().layout.title.text


def test_positions_are_drawn_with_tokens_and_every_cell_is_clickable() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer(), role="model")
    same = Prompts.of([
        {"prompt": f"the fox {a}", "contrast": f"the dog {a}", "answer": " over", "distractor": " the"} for a in "xyzq"
    ])  # fmt: skip
    if len({len(ids) for ids in make_task(model, same, None, None).target_ids}) > 1:
        pytest.skip("the tokenizer made unequal lengths")
    found = patching(model, same, sites=["resid_pre", "mlp_out"], normalise=False)
    figure = found.figure()
    assert found.table.position.min() == 0 and set(found.table.module) == {"resid_pre", "mlp_out"}
    assert sum(trace.type == "heatmap" for trace in figure.data) >= 2
    clicks = [list(cell) for trace in figure.data if trace.type == "scatter" for cell in trace.customdata]
    assert [2, 1] in clicks and "the" in " ".join(figure.layout.xaxis.ticktext)


def test_clashing_answers_are_dropped_and_counted() -> None:
    given = [{"prompt": f"the fox {i}", "answer": " over", "distractor": " the"} for i in range(6)]
    given.append({"prompt": "the fox x", "answer": " over", "distractor": " over there"})
    found = patching(pair_of("llama"), given, normalise=False, together=0)
    assert found.provenance.settings["clashing_answers_dropped"] == 1 and len(found.effects) == 6
    with pytest.raises(UserError, match="the same tokens as far as the shorter one goes"):
        patching(pair_of("llama"), given[-1:], normalise=False)


def test_answers_that_begin_alike_are_read_to_where_they_part() -> None:
    pair = pair_of("llama")
    alike = [{"prompt": "the fox", "answer": " dog!", "distractor": " dog?"}]
    longer = [{"prompt": "the fox dog", "answer": "!", "distractor": "?"}]
    options = {"normalise": False, "together": 0, "draws": 20}
    found, same = (patching(pair, rows, **options) for rows in (alike, longer))
    assert found.provenance.settings["read_to_the_difference"] == 1
    assert found.effects == pytest.approx(same.effects) and found.source_value[0] == same.source_value[0]


def test_no_effect_is_reported_where_answer_and_distractor_are_drawn_by_lot() -> None:
    """False discoveries: swapping answer and distractor of random prompts turns the sign of their effects."""
    found = patching(pair_of("llama"), rows(), normalise=False, together=0)
    swapped = Prompts.of([{"prompt": str(row), "answer": row.distractor, "distractor": row.answer} for row in rows(3)])
    turned = patching(pair_of("llama"), swapped, normalise=False, together=0)
    assert turned.effects == pytest.approx(-found.effects[:3], abs=1e-5)
    flags = []
    for seed in range(200):
        lots = np.random.default_rng(seed).choice([-1.0, 1.0], len(found.effects))[:, None]
        flags.append((q_values(paired_permutation(found.effects * lots, draws=2000).p) < 0.05).any())
    assert np.mean(flags) <= 0.08, "5 % are expected; 8 % would be two standard errors above"


def test_errors_say_what_to_do() -> None:
    pair, model = pair_of("llama"), AdaptedModel(tiny_model("llama"), tokenizer(), role="model")
    with pytest.raises(UserError, match="compares an answer with a distractor"):
        patching(pair, ["the fox"])
    with pytest.raises(UserError, match="no 'contrast'"):
        patching(model, rows(2))
    with pytest.raises(UserError, match="needs equal lengths"):
        patching(model, [{"prompt": "the fox", "contrast": "dog dog dog dog", "answer": " over", "distractor": " the"}])
    with pytest.raises(UserError, match="'tuned' is no run of this subject"):
        patching(model, rows(2), source="tuned")
    with pytest.raises(UserError, match="Cannot patch from 'tuned' into 'tuned'"):
        patching(pair, rows(2), source="tuned", target="tuned")
    with pytest.raises(UserError, match="both runs are of one model"):
        patching(model, prompts(), inputs="target")
    with pytest.raises(UserError, match="Unknown site to patch 'z'"):
        patching(pair, rows(2), sites=["z"])
    with pytest.raises(UserError, match="Unknown metric 'logits'"):
        patching(pair, rows(2), metric="logits")
    with pytest.raises(UserError, match=r"confirm=10.0 is a share of the cells"):
        patching(pair, rows(2), method="attribution", confirm=10.0)
    with pytest.raises(UserError, match="at least one point"):
        patching(pair, rows(2), method="ig", ig_steps=0)
    with pytest.raises(UserError, match="outside the shortest prompt"):
        patching(pair, rows(2), positions=[-99])


def test_an_adapter_pair_on_one_copy_of_the_weights_equals_two_models(tmp_path: Path) -> None:
    """Both runs switch the same weights; the merged adapter as a second model must give the same scores."""
    base = tiny_model("llama")
    base.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(tiny_model("llama"), config)
    adapted.save_pretrained(tmp_path / "adapter")
    pair = load_pair(str(tmp_path / "base"), str(tmp_path / "adapter"), device="cpu")
    assert pair.one_copy
    two = Pair(base, adapted.merge_and_unload())
    for what, inputs, positions in (("z", "source", "last"), ("write", "target", "all")):
        options = {"what": what, "inputs": inputs, "positions": positions, "metric": "kl", "together": 0}
        for source in ("tuned", "base"):
            one = patching(pair, rows(8), source=source, **options)
            other = patching(two, rows(8), source=source, **options)
            assert one.effects == pytest.approx(other.effects, abs=1e-4) and np.abs(one.effects).max() > 1e-2
    assert pair.base.n_hooks == 0 and set(one.provenance.models) == {"base", "tuned"}
