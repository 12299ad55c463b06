"""Path patching equals whole forward passes with everything else pinned; known answers of the method's card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft
import pytest
import torch

import probes
from probes.patches.runs import output_matrix, record
from probes.paths.finding import path_patching
from probes.paths.result import PathPatching
from probes.paths.sending import PathRun, Receivers
from tests.probes.paths.planted import induction_model, repeated_pairs
from tests.probes.test_patching import Pair, pair_of
from tests.tiny import FAMILIES, VOCAB, tiny_model, tokenizer
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.prompts import Prompts
from workbench.prompts.encode import pad_left


def model_of(family: str = "llama", dtype: torch.dtype = torch.float64) -> AdaptedModel:
    return AdaptedModel(tiny_model(family, dtype=dtype), tokenizer(), role="model")


def rows(n: int = 6) -> Prompts:
    words = ["fox", "dog", "the", "quick", "lazy", "brown"]
    return Prompts.of([
        {
            "prompt": f"the {words[i % 6]} {words[(i + 2) % 6]} jumps {'xyzq'[i % 4]}", "answer": " over",
            "contrast": f"the {words[(i + 1) % 6]} {words[(i + 3) % 6]} jumps {'xyzq'[i % 4]}", "distractor": " the",
        }
        for i in range(n)
    ])  # fmt: skip


def token_rows(lengths: tuple[int, ...] = (20, 9, 13), seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """Clean and corrupted token ids of equal length in a pair, some beyond the sliding window of 16."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[int]:
        return torch.randint(4, VOCAB, (n,), generator=generator).tolist()

    return [draw(n) for n in lengths], [draw(n) for n in lengths]


def naive(  # one row, whole forward passes, every hook written out
    model: AdaptedModel,
    clean: list[int],
    corrupted: list[int],
    at: int,
    sender: tuple[int, int],
    receivers: Receivers | None,
    freeze_mlps: bool,
) -> torch.Tensor:
    """Last logits: all z at ``at`` and after it pinned to clean, the sender's at ``at`` corrupted; then the receivers
    alone changed in a fresh clean run, those before the sender included."""
    layers = range(model.n_layers)
    kept: dict[Any, torch.Tensor] = {}

    def keep(name: Any) -> Any:
        return lambda value, _ctx: kept.__setitem__(name, value.clone())

    for ids, name in ((clean, "clean"), (corrupted, "corrupted")):
        hooks = [SiteHook(Site("z", layer), keep((name, "z", layer))) for layer in layers]
        hooks += [SiteHook(Site("mlp_out", layer), keep((name, "mlp_out", layer))) for layer in layers]
        with model.hooked(hooks):
            model.forward(torch.tensor([ids]))

    def pinned(layer: int) -> Any:
        def edit(value: torch.Tensor, _ctx: object) -> torch.Tensor:
            new = value.clone()
            new[:, at:] = kept["clean", "z", layer][:, at:]
            if layer == sender[0]:
                new[:, at, sender[1]] = kept["corrupted", "z", layer][:, at, sender[1]]
            return new

        return edit

    def mlp(layer: int) -> Any:
        def edit(value: torch.Tensor, _ctx: object) -> torch.Tensor:
            new = value.clone()
            new[:, at:] = kept["clean", "mlp_out", layer][:, at:]
            return new

        return edit

    hooks = [SiteHook(Site("z", layer), pinned(layer), edit=True) for layer in layers]
    hooks += [SiteHook(Site("mlp_out", layer), mlp(layer), edit=True) for layer in layers] if freeze_mlps else []
    if receivers is not None:
        places = dict.fromkeys(layer for layer, _ in receivers.heads)
        hooks += [SiteHook(Site(receivers.through, layer), keep(("received", layer))) for layer in places]
    with model.hooked(hooks):
        logits = model.forward(torch.tensor([clean]))
    if receivers is None:
        return logits[0, -1]

    def given(layer: int) -> Any:
        def edit(value: torch.Tensor, _ctx: object) -> torch.Tensor:
            new = value.clone()
            for place, head in receivers.heads:
                if place == layer:
                    new[:, at, head] = kept["received", layer][:, at, head]
            return new

        return edit

    with model.hooked([SiteHook(Site(receivers.through, layer), given(layer), edit=True) for layer in places]):
        return model.forward(torch.tensor([clean]))[0, -1]


def run_of(model: AdaptedModel, clean: list, corrupted: list, at: int, freeze_mlps: bool = False) -> PathRun:
    z = [Site("z", layer) for layer in range(model.n_layers)]
    values, _ = record(model, pad_left(corrupted, 0), z)
    sent = torch.stack([values[site][:, at] for site in z])
    return PathRun(model, pad_left(clean, 0), torch.full((len(clean),), at), sent, freeze_mlps=freeze_mlps)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("freeze", [False, True])
def test_paths_to_the_logits_equal_whole_forward_passes(family: str, freeze: bool) -> None:
    model = model_of(family, torch.float32)
    clean, corrupted = token_rows()
    run = run_of(model, clean, corrupted, -1, freeze)
    for layer in range(3):
        logits = run.to_logits(layer, [0, 3])
        assert (logits[:, 1:] - logits[:, :1]).abs().max() > 1e-2
        for row, (copy, head) in ((0, (1, 0)), (1, (2, 3))):
            wanted = naive(model, clean[row], corrupted[row], -1, (layer, head), None, freeze)
            torch.testing.assert_close(logits[row, copy], wanted, atol=2e-4, rtol=1e-3)
    assert model.n_hooks == 0


CASES = [("q", -1), ("k", -4), ("v", -4), ("v", -1)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "neox", "qwen3moe", "gptoss", "phi3"])
@pytest.mark.parametrize(("through", "at"), CASES)
def test_paths_to_heads_equal_whole_forward_passes(family: str, through: str, at: int) -> None:
    model = model_of(family, torch.float32)
    clean, corrupted = token_rows()
    last = model.n_kv_heads - 1 if through != "q" else 3
    receivers = Receivers(through, ((1, 0), (2, last), (2, 0)))
    run = run_of(model, clean, corrupted, at)
    for layer in (0, 1):
        logits, nothing = run.to_heads(layer, [1, 2], receivers)
        assert not nothing.any() and (logits[:, 1:] - logits[:, :1]).abs().max() > 1e-3
        for row, (copy, head) in ((0, (1, 1)), (1, (2, 2))):
            wanted = naive(model, clean[row], corrupted[row], at, (layer, head), receivers, False)
            torch.testing.assert_close(logits[row, copy], wanted, atol=3e-4, rtol=1e-3)
    assert model.n_hooks == 0


@pytest.mark.parametrize(("receivers", "through"), [("logits", "q"), (["L2H1"], "q"), (["L1H0"], "k"), (["L2H3"], "v")])
def test_corrupted_equal_to_clean_gives_exactly_zero(receivers: Any, through: str) -> None:
    """KAT (a), and base = tuned."""
    texts = [f"the fox {i}" for i in range(5)]
    same = Prompts.of([{"prompt": t, "contrast": t, "answer": " over", "distractor": " dog"} for t in texts])
    found = path_patching(model_of(), same, receivers, through, only_correct=False)
    assert (found.effects == 0).all() and (found.table.q == 1).all()
    twin = Pair(tiny_model("llama", dtype=torch.float64), tiny_model("llama", dtype=torch.float64))
    found = path_patching(twin, same, receivers, through, source="tuned", target="base", only_correct=False)
    assert (found.effects == 0).all()
    other = path_patching(
        pair_of("llama", torch.float64), same, receivers, through, source="tuned", target="base", only_correct=False
    )
    assert np.abs(other.effects).max() > 1e-4


def test_with_frozen_mlps_the_direct_path_is_the_write_through_norm_and_unembedding() -> None:
    """KAT (b): lm_head(norm(resid + W_O dz)) to 1e-12, for every head of every layer."""
    model = model_of()
    clean, corrupted = token_rows((11,))
    run = run_of(model, clean, corrupted, -1, freeze_mlps=True)
    last = Site("resid_post", 2)
    resid, _ = record(model, pad_left(clean, 0), [last, *(Site("z", layer) for layer in range(3))])
    for layer in range(3):
        logits = run.to_logits(layer, [0, 1, 2, 3])
        for head in range(4):
            shift = (run.sent[layer] - resid[Site("z", layer)][:, -1])[0, head] @ output_matrix(model, layer)[head]
            with torch.no_grad():
                by_hand = model.hf.lm_head(model.hf.model.norm(resid[last][0, -1] + shift))
            assert torch.allclose(logits[0, head + 1], by_hand, atol=1e-12)
    free = run_of(model, clean, corrupted, -1).to_logits(0, [0, 1, 2, 3])
    assert (free - run.to_logits(0, [0, 1, 2, 3])).abs().max() > 0.1, "recomputed MLPs carry a part of their own"


def test_a_receiver_in_the_same_or_an_earlier_layer_and_a_zero_query_score_zero() -> None:
    """KAT (c)."""
    model = model_of()
    found = path_patching(model, rows(), ["L1H2"], "q", only_correct=False).table.set_index(["layer", "head"])
    assert (found.loc[[1, 2]].score == 0).all() and found.loc[0].score.abs().min() > 1e-6
    clean, corrupted = token_rows((9,))
    baseline = model.forward(torch.tensor(clean))[0, -1]
    for sender in ((1, 0), (2, 3)):  # the long way round, where every receiver is changed whatever its layer
        wanted = naive(model, clean[0], corrupted[0], -1, sender, Receivers("q", ((1, 2),)), False)
        assert torch.allclose(wanted, baseline, atol=1e-12)
    with torch.no_grad():
        model.hf.model.layers[1].self_attn.q_proj.weight[32:48] = 0
    assert (path_patching(model, rows(), ["L1H2"], "q", only_correct=False).effects == 0).all()
    assert np.abs(path_patching(model, rows(), ["L1H1"], "q", only_correct=False).effects).max() > 1e-6


def test_positions_before_the_sender_do_not_change() -> None:
    """KAT (d)."""
    model = model_of()
    clean, corrupted = token_rows((12,))
    run = run_of(model, clean, corrupted, -5)
    kept: list[torch.Tensor] = []
    with model.hooked([SiteHook(Site("resid_post", 2), lambda value, ctx: kept.append(value.clone()))]):
        model.forward(torch.tensor(clean))
        run._run.shortcuts = False  # whole forward passes, so that every position is there to be seen
        run.to_heads(0, [2], Receivers("v", ((1, 0),)))
    changed = (kept[0] - kept[-1][1:]).abs().amax(-1)[0]
    assert (changed[:-5] < 1e-12).all() and (changed[-5:] > 1e-9).all()


def test_the_induction_head_is_fed_through_its_keys_only() -> None:
    """KAT (g): the previous-token head reaches the hand-built induction head through k at the repeated pair's second
    word, and through nothing else."""
    model, prompts = induction_model(), repeated_pairs()
    direct = path_patching(model, prompts)
    assert direct.best(1) == ["L1H0"] and direct.frame().score[0] < -0.8 and direct.frame().q[0] < 0.05
    by_keys = path_patching(model, prompts, direct.best(1), "k", "after")
    assert by_keys.best(1) == ["L0H0"] and by_keys.frame().score[0] < -0.8 and by_keys.frame().high[0] < -0.8
    assert by_keys.table.score.drop(by_keys.frame().index[0]).abs().max() < 1e-4
    assert by_keys.frame().control[0] > -0.5
    for through, place in (("q", "after"), ("v", "after"), ("q", "last"), ("k", "last"), ("v", "last")):
        assert path_patching(model, prompts, ["L1H0"], through, place).table.score.abs().max() < 1e-3
    by_difference = path_patching(model, prompts, ["L1H0"], "k", "after", metric="logit_diff")
    assert by_difference.best(1) == ["L0H0"] and by_difference.frame().score[0] < -1


def test_the_ratio_is_that_of_probabilities_and_batches_do_not_matter() -> None:
    model = model_of()
    whole = path_patching(model, rows(), only_correct=False)
    parts = path_patching(model, rows(), only_correct=False, batch_size=1, max_tokens=1)
    assert whole.effects == pytest.approx(parts.effects, abs=1e-10)
    clean = model.forward(model.encode(rows()[:1]))[0, -1].softmax(-1)
    token = tokenizer()(" over", add_special_tokens=False)["input_ids"][0]
    ids = [model.encode([text]).input_ids[0].tolist() for text in (rows()[0].prompt, rows()[0].contrast)]
    patched = naive(model, *ids, -1, (2, 1), None, False).softmax(-1)
    wanted = float((patched[token] - clean[token]) / clean[token])
    assert whole.effects[0, 2 * 4 + 1] == pytest.approx(wanted, abs=1e-10)
    some = path_patching(model, rows(), senders=["L2H1", "L0H3"], only_correct=False)
    assert some.effects == pytest.approx(whole.effects[:, [3, 9]], abs=1e-10)
    assert whole.clean[0] == pytest.approx(float(clean[token]), abs=0.05)


def test_an_adapter_pair_on_one_copy_of_the_weights_equals_two_models(tmp_path: Path) -> None:
    """Senders of one view, receivers of the other; the merged adapter as a second model must give the same scores."""
    base = tiny_model("llama")
    base.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(tiny_model("llama"), config)
    adapted.save_pretrained(tmp_path / "adapter")
    pair = load_pair(str(tmp_path / "base"), str(tmp_path / "adapter"), device="cpu")
    two = Pair(base, adapted.merge_and_unload())
    assert pair.one_copy
    for runs in ({"source": "tuned", "target": "base"}, {"source": "base", "target": "tuned"}, {}):
        for receivers, through in (("logits", "q"), (["L2H1"], "v")):
            one = path_patching(pair, rows(), receivers, through, only_correct=False, **runs)
            other = path_patching(two, rows(), receivers, through, only_correct=False, **runs)
            assert one.effects == pytest.approx(other.effects, abs=1e-4) and np.abs(one.effects).max() > 1e-2
    assert pair.base.n_hooks == 0 and set(one.provenance.models) == {"tuned"}


def test_files_figures_and_the_sign_for_comparisons(tmp_path: Path) -> None:
    found = path_patching(induction_model(), repeated_pairs())
    back = PathPatching.load(found.save(tmp_path / "paths"))
    assert back.frame().equals(found.frame()) and not back.freeze_mlps and back.clean == found.clean
    assert found.provenance.settings["freeze_mlps"] is False and found.provenance.forward_passes > 0
    assert "logits" in found.figure().layout.title.text and "MLPs recomputed" in found.summary()
    assert list(found.importance().score) == sorted(-found.table.score, reverse=True)
    damaging = pd.DataFrame({"layer": [1, 0, 0, 1], "head": [0, 0, 1, 1], "score": [9.0, 0.2, 0.1, 0.0]})
    assert probes.compare(found, damaging, ks=[1]).table.score[0] == 1, "the most negative head is the most important"
    assert probes.compare(found, found).spearman == pytest.approx(1)


def test_errors_say_what_to_do() -> None:
    model = model_of()
    with pytest.raises(UserError, match="answers none of the 6 prompts correctly"):
        path_patching(model, rows())
    with pytest.raises(UserError, match="L9H0 does not exist: the model has 3 layers of 4 heads"):
        path_patching(model, rows(), ["L9H0"])
    with pytest.raises(UserError, match="is not a head"):
        path_patching(model, rows(), ["L1E0"])
    with pytest.raises(UserError, match="There are no receivers"):
        path_patching(model, rows(), [])
    with pytest.raises(UserError, match="Unknown input of a head 'z'"):
        path_patching(model, rows(), ["L1H0"], "z")
    with pytest.raises(UserError, match="Unknown metric 'kl'"):
        path_patching(model, rows(), metric="kl")
    with pytest.raises(UserError, match="neither a number, 'last', nor a column"):
        path_patching(model, rows(), position="box", only_correct=False)
    with pytest.raises(UserError, match="position -99 is outside"):
        path_patching(model, rows(), position=-99, only_correct=False)
    with pytest.raises(UserError, match="no 'contrast'"):
        path_patching(model, [{"prompt": "the fox", "answer": " over"}])
    with pytest.raises(UserError, match="There are no senders"):
        path_patching(model, rows(), senders=[], only_correct=False)
    with pytest.raises(UserError, match=r"blocks.1.attn.hook_k"):
        path_patching(model_of("dsv3", torch.float32), rows(), ["L1H0"], "k", only_correct=False)
