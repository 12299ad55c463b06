"""Patching: scores of the replayed sweep equal whole forward passes one by one; known answers of METHODS 7."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from probes.patches.attribution import attributions
from probes.patches.cells import Cell, all_cells, places_of
from probes.patches.metrics import Metric
from probes.patches.patching import patching
from probes.patches.runs import TargetRun, output_matrix, record
from probes.patches.sweep import sweep
from probes.patches.task import Task
from tests.mixed_families import mixed_model
from tests.tiny import FAMILIES, VOCAB, tiny_model, tokenizer, tuned_copy
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts import Prompts


class Pair:
    """A base and a tuned model, as ModelPair holds them."""

    def __init__(self, base: Any, tuned: Any) -> None:
        self.base = AdaptedModel(base, tokenizer(), role="base", name="base")
        self.tuned = AdaptedModel(tuned, tokenizer(), role="tuned", name="tuned")


def pair_of(family: str, dtype: torch.dtype = torch.float32, size: float = 0.05) -> Pair:
    base = tiny_model(family, dtype=dtype)
    return Pair(base, tuned_copy(base, size=size))


def prompts(n: int = 5) -> Prompts:
    """Pairs of prompts of equal length within a pair; lengths differ between pairs."""
    words = ["fox", "dog", "the", "quick", "lazy", "brown"]
    made = []
    for i in range(n):
        tail = "xyz"[: i % 3] + "q"
        made.append({
            "prompt": f"the {words[i % 6]} jumps {tail}", "contrast": f"the {words[(i + 1) % 6]} jumps {tail}",
            "answer": " over", "distractor": " the",
        })  # fmt: skip
    same = [row for row in made if _length(row["prompt"]) == _length(row["contrast"])]
    return Prompts.of(same)


def _length(text: str) -> int:
    return len(tokenizer()(text)["input_ids"])


def random_task(source: AdaptedModel, target: AdaptedModel, rows: int = 4, seed: int = 0) -> Task:
    """Random token ids of unequal lengths, some beyond the sliding window of 16."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(4, VOCAB, (length,), generator=generator).tolist()

    lengths = [(20, 9, 13, 5)[row % 4] for row in range(rows)]
    theirs = [draw(length) for length in lengths]
    same = source is not target
    ours = theirs if same else [draw(length) for length in lengths]
    names = ("tuned", "base") if same else ("clean", "corrupted")
    answers, distractors = torch.arange(10, 10 + rows), torch.arange(50, 50 + rows)
    return Task(source, target, names, theirs, ours, answers, distractors, Prompts.of(["x"] * rows))


def naive(task: Task, cell: Cell, metric: str) -> list[float]:
    """The effect of one cell, prompt by prompt, with whole forward passes and nothing shared."""
    effects = []
    for row, (theirs, ours) in enumerate(zip(task.source_ids, task.target_ids, strict=True)):
        kept: list[torch.Tensor] = []
        with task.source.hooked([SiteHook(cell.site, lambda value, ctx: kept.append(value.clone()))]):  # noqa: B023
            source = task.source.forward(torch.tensor([theirs]))[0, -1]
        target = task.target.forward(torch.tensor([ours]))[0, -1]

        def put(value: torch.Tensor, ctx: object) -> torch.Tensor:
            new = value.clone()
            at = list(range(new.shape[1])) if cell.positions is None else list(cell.positions)
            for place in at:
                if cell.head is None:
                    new[0, place] = kept[0][0, place]  # noqa: B023
                else:
                    new[0, place, cell.head] = kept[0][0, place, cell.head]  # noqa: B023
            return new

        with task.target.hooked([SiteHook(cell.site, put, edit=True)]):
            patched = task.target.forward(torch.tensor([ours]))[0, -1]
        judge = Metric(
            metric, task.answers[[row]], task.distractors[[row]], source.log_softmax(-1)[None]
        )  # fmt: skip
        effects.append((judge(patched[None, None]) - judge(target[None, None])).item())
    return effects


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", ["all", "last"])
def test_head_patching_equals_whole_forward_passes(family: str, positions: str) -> None:
    pair = pair_of(family)
    task = random_task(pair.tuned, pair.base)
    cells = [Cell("z", layer, head, None if positions == "all" else (-1,)) for layer in range(3) for head in (0, 3)]
    found = sweep(task, [(cell,) for cell in cells], "logit_diff", batch_size=3)
    assert found.exact_shortcuts, "replay must be exact for every tested family"
    for column, cell in enumerate(cells):
        assert found.effects[:, column] == pytest.approx(naive(task, cell, "logit_diff"), abs=1e-4)
    assert np.abs(found.effects).max() > 1e-2
    whole = sweep(task, [(cell,) for cell in cells], "logit_diff", batch_size=3, shortcuts=False)
    assert found.effects == pytest.approx(whole.effects, abs=1e-4) and found.passes < whole.passes
    assert pair.base.n_hooks == pair.tuned.n_hooks == 0


@pytest.mark.parametrize("kind", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"])
@pytest.mark.parametrize("metric", ["logit_diff", "prob", "kl"])
def test_sites_by_position_equal_whole_forward_passes(kind: str, metric: str) -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer(), role="model")
    task = random_task(model, model)
    cells = all_cells(model, [kind], [0, 2], places_of([-1, -3], task.lengths))
    found = sweep(task, [(cell,) for cell in cells], metric, batch_size=2)
    for column, cell in enumerate(cells):
        assert found.effects[:, column] == pytest.approx(naive(task, cell, metric), abs=1e-4)


def test_corrupted_equal_to_clean_gives_exactly_zero() -> None:
    """KAT (a), and its cross-model form: base = tuned."""
    model = AdaptedModel(tiny_model("llama", dtype=torch.float64), tokenizer(), role="model")
    rows = Prompts.of(
        [
            {"prompt": f"the fox {i}", "contrast": f"the fox {i}", "answer": " over", "distractor": " dog"}
            for i in range(4)
        ]
    )
    found = patching(model, rows, normalise=False)
    assert (found.table.score == 0).all() and (found.table.q == 1).all()
    twin = Pair(tiny_model("llama", dtype=torch.float64), tiny_model("llama", dtype=torch.float64))
    for what in ("z", "write"):
        found = patching(twin, rows, what=what, normalise=False)
        assert np.abs(found.table.score).max() < 1e-12 and (found.table.q > 0.05).all()
    with pytest.raises(
        UserError, match=r"Nothing to localize: logit_diff is .* in the tuned run and .* in the base run"
    ):
        patching(twin, rows)


def test_a_head_of_the_last_layer_writes_straight_to_the_logits() -> None:
    """KAT (b): with the last MLP silent, the patched logits are lm_head(norm(resid + W_O dz)) to 1e-13."""
    hf = tiny_model("llama", dtype=torch.float64)
    with torch.no_grad():
        hf.model.layers[2].mlp.down_proj.weight.zero_()
    model = AdaptedModel(hf, tokenizer(), role="model")
    task = random_task(model, model, rows=1)
    z, resid = Site("z", 2), Site("resid_post", 2)
    theirs, _ = record(model, task.batch([0])[0], [z])
    ours, _ = record(model, task.batch([0])[1], [z, resid])
    shift = (theirs[z] - ours[z])[0, -1, 1] @ output_matrix(model, 2)[1]
    with torch.no_grad():
        by_hand = hf.lm_head(hf.model.norm(ours[resid][0, -1] + shift))
    run = TargetRun(model, task.batch([0])[1], theirs)
    patched = run.patched([(Cell("z", 2, 1),)])[0, 0]
    assert torch.allclose(patched, by_hand, atol=1e-13)


def test_a_head_nobody_reads_scores_zero() -> None:
    """KAT (c): patches after the last layer that is read, and heads whose W_O is zero, change nothing."""
    hf = tiny_model("llama", dtype=torch.float64)
    with torch.no_grad():
        hf.model.layers[1].self_attn.o_proj.weight[:, :16] = 0
    model = AdaptedModel(hf, tokenizer(), role="model")
    task = random_task(model, model)
    found = sweep(task, [(Cell("z", 1, 0),), (Cell("z", 1, 1),), (Cell("resid_post", 2, None, (-2,)),)], "logit_diff")
    assert (found.effects[:, [0, 2]] == 0).all() and np.abs(found.effects[:, 1]).min() > 0


def test_positions_before_the_patch_do_not_change() -> None:
    """KAT (d)."""
    model = AdaptedModel(tiny_model("llama", dtype=torch.float64), tokenizer(), role="model")
    task = random_task(model, model, rows=1)
    source, _ = record(model, task.batch([0])[0], [Site("z", 1)])
    run = TargetRun(model, task.batch([0])[1], source)
    kept: list[torch.Tensor] = []
    with model.hooked([SiteHook(Site("resid_post", 2), lambda value, ctx: kept.append(value.clone()))]):
        model.forward(task.batch([0])[1])
        run.patched([(Cell("z", 1, 2, (-4,)),)])
    changed = (kept[0] - kept[-1]).abs().amax(-1)[0]
    assert (changed[:-4] < 1e-12).all() and (changed[-4:] > 0).all()


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3moe", "neox"])
def test_all_heads_and_mlps_of_the_tuned_model_give_the_tuned_logits(family: str) -> None:
    """KAT (e): with embeddings, norm, head and o_proj shared; what="write" needs no shared o_proj."""
    double = family in ("llama", "neox")  # gemma2's masks and the experts' kernel do not work in double precision
    pair = pair_of(family, torch.float64 if double else torch.float32)
    shared = ("embed", "wte", "lm_head", "norm", "o_proj", "dense.")
    with torch.no_grad():
        for (name, ours), theirs in zip(pair.base.hf.named_parameters(), pair.tuned.hf.parameters(), strict=True):
            if any(part in name for part in shared) and "h_to_4h" not in name:
                theirs.copy_(ours)
    task = random_task(pair.tuned, pair.base, rows=2)
    everything = tuple(Cell("z", layer, head) for layer in range(3) for head in range(4))
    everything += tuple(Cell("mlp_out", layer) for layer in range(3))
    found = sweep(task, [everything], "logit_diff")
    assert found.effects[:, 0] == pytest.approx(found.source - found.target, abs=1e-10 if double else 1e-4)
    assert np.abs(found.source - found.target).min() > 1e-2


def test_z_and_write_differ_exactly_when_the_output_projection_was_tuned() -> None:
    pair = pair_of("llama", torch.float64)
    task = random_task(pair.tuned, pair.base, rows=2)
    heads = tuple(Cell("write", layer, head) for layer in range(3) for head in range(4))
    mlps = tuple(Cell("mlp_out", layer) for layer in range(3))
    with torch.no_grad():
        for part in ("model.embed_tokens", "model.norm", "lm_head"):
            pair.tuned.hf.get_submodule(part).weight.copy_(pair.base.hf.get_submodule(part).weight)
    as_z = tuple(Cell("z", cell.layer, cell.head) for cell in heads)
    found = sweep(task, [heads + mlps, as_z + mlps], "logit_diff")
    gap = found.source - found.target
    assert found.effects[:, 0] == pytest.approx(gap, abs=1e-10)
    assert np.abs(found.effects[:, 1] - gap).min() > 1e-3
    single = sweep(task, [(Cell("write", 1, 2),), (Cell("z", 1, 2),)], "logit_diff")
    with torch.no_grad():
        for ours, theirs in zip(pair.base.hf.model.layers, pair.tuned.hf.model.layers, strict=True):
            theirs.self_attn.o_proj.weight.copy_(ours.self_attn.o_proj.weight)
    shared = sweep(
        random_task(pair.tuned, pair.base, rows=2), [(Cell("write", 1, 2),), (Cell("z", 1, 2),)], "logit_diff"
    )
    assert np.abs(single.effects[:, 0] - single.effects[:, 1]).min() > 1e-6
    assert shared.effects[:, 0] == pytest.approx(shared.effects[:, 1], abs=1e-12)


def test_a_write_needs_no_norm_behind_the_projection() -> None:
    with pytest.raises(NotSupported, match="normalises the attention output"):
        patching(pair_of("gemma2"), prompts(), what="write", normalise=False)


def test_integrated_gradients_of_a_layer_sum_to_its_exact_effect() -> None:
    """Completeness: the estimates of all heads of a layer sum to patching them all."""
    pair = pair_of("llama", torch.float64, size=0.03)
    task = random_task(pair.tuned, pair.base)
    for kind in ("z", "write"):
        cells = [Cell(kind, 1, head) for head in range(4)]
        together = sweep(task, [tuple(cells)], "logit_diff").effects[:, 0]
        found, replayed, walked = attributions(task, cells, "logit_diff", steps=20)
        rough, forward, backward = attributions(task, cells, "logit_diff")
        assert found.sum(1) == pytest.approx(together, abs=2e-3 * np.abs(together).max())
        assert np.abs(found.sum(1) - together).max() < np.abs(rough.sum(1) - together).max()
        assert (forward, backward) == (2, 1) and walked == pytest.approx(20 * 2 / 3)
        assert replayed == pytest.approx(2 + 1 / 3 * 2 + 20 * 2 / 3, abs=0.4), "two runs, the check, the path"
    assert all(parameter.requires_grad for parameter in pair.base.hf.parameters())


def test_attribution_is_the_derivative_of_the_patch() -> None:
    """For a small difference between the runs the estimate equals the exact effect."""
    pair = pair_of("qwen2", torch.float64, size=1e-4)
    task = random_task(pair.tuned, pair.base)
    cells = all_cells(pair.base, ["z"], [0, 1, 2], [None]) + all_cells(pair.base, ["mlp_out"], [1], [(-1,), (-2,)])
    exact = sweep(task, [(cell,) for cell in cells], "logit_diff").effects
    estimate, _, _ = attributions(task, cells, "logit_diff")
    assert estimate == pytest.approx(exact, abs=1e-2 * np.abs(exact).max())


ROWS = [{"prompt": f"the {word}", "answer": " fox", "distractor": " dog"} for word in ("quick", "lazy", "brown")]


def mixed_pair(kind: str) -> ModelPair:
    """Two models of one unembedding, so that the last layer's stream is all that their answers differ by."""
    model = mixed_model(kind)
    tuned = tuned_copy(model, size=0.05)
    tuned.get_output_embeddings().weight.data = model.get_output_embeddings().weight.data.clone()
    return load_pair(model, tuned, tokenizer=tokenizer(), check=False)


@pytest.mark.parametrize(("kind", "layers"), [("lfm2", [1, 3]), ("qwen3_next", [3])])
def test_heads_are_those_of_the_layers_that_have_attention(kind: str, layers: list[int]) -> None:
    pair = mixed_pair(kind)
    table = patching(pair, ROWS, "heads", normalise=False, draws=20).frame()
    assert sorted(set(table["layer"])) == layers and len(table) == 4 * len(layers)
    stream = patching(pair, ROWS, "resid_post", positions="last", normalise=False, draws=20)
    whole = stream.table.set_index("layer").loc[pair.tuned.n_layers - 1, "score"]
    gap = stream.source_value[0] - stream.target_value[0]
    assert whole == pytest.approx(gap, rel=1e-3, abs=1e-5)
    with pytest.raises(UserError, match=r"no attention heads \(its layers with heads are .*patch resid_post"):
        patching(pair, ROWS, "heads", layers=[0], normalise=False)


def test_a_model_without_attention_has_no_heads_to_patch() -> None:
    with pytest.raises(UserError, match=r"no attention heads \(no layer has\)"):
        patching(mixed_pair("mamba2"), ROWS, "heads", normalise=False)
