"""What patching spends, counted on the models themselves, and that estimates leave the models as they were."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

from probes.patches import recorded
from probes.patches.attribution import attributions
from probes.patches.cells import Cell, all_cells, kinds_of
from probes.patches.patching import patching
from probes.patches.recorded import Recorded
from probes.patches.sweep import sweep
from probes.replay import frozen
from tests.probes.test_patching import Pair, pair_of, random_task
from tests.tiny import FAMILIES, tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.prompts import Prompts

WORDS = ["fox", "dog", "the", "quick", "lazy", "brown"]


def rows(n: int) -> Prompts:
    """Prompts of one length with their contrasts, so that all batches of as many rows are equally large."""
    found = [
        {"prompt": f"the {a} jumps", "contrast": f"the {b} jumps", "answer": " over", "distractor": " dog"}
        for a in WORDS for b in WORDS if a != b
    ]  # fmt: skip
    ids = tokenizer()([row["prompt"] for row in found])["input_ids"]
    others = tokenizer()([row["contrast"] for row in found])["input_ids"]
    length = max({len(one) for one in ids}, key=[len(one) for one in ids].count)
    same = [row for row, one, other in zip(found, ids, others, strict=True) if len(one) == len(other) == length]
    assert len(same) >= n
    return Prompts.of(same[:n])


@dataclass
class Meter:
    """What the modules of models did: whole calls, and the tokens that went through each layer, either way."""

    calls: dict[str, int] = field(default_factory=dict)
    forward: int = 0
    backward: int = 0
    trainable: int = 0

    def enter(self, model: AdaptedModel, stack: ExitStack) -> None:
        layers = model.inner.model.layers
        self.calls[model.role] = 0
        stack.callback(model.inner.register_forward_pre_hook(lambda *_: self._call(model)).remove)
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(self._into).remove)
            stack.callback(layer.register_forward_hook(self._out_of).remove)

    def _call(self, model: AdaptedModel) -> None:
        self.calls[model.role] += 1
        if torch.is_grad_enabled():
            self.trainable += sum(parameter.requires_grad for parameter in model.hf.parameters())

    def _into(self, layer: Any, args: tuple[Any, ...]) -> None:
        if "forward" not in layer.__dict__:  # one that is skipped hands its input on instead
            self.forward += args[0].shape[0] * args[0].shape[1]

    def _out_of(self, layer: Any, _args: Any, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out
        if out.requires_grad:
            out.register_hook(self._back)

    def _back(self, gradient: torch.Tensor) -> None:
        self.backward += gradient.shape[0] * gradient.shape[1]


@contextmanager
def metered(*models: AdaptedModel) -> Iterator[Meter]:
    meter = Meter()
    with ExitStack() as stack:
        for model in models:
            meter.enter(model, stack)
        yield meter


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize(
    ("sites", "what", "metric"),
    [("heads", "z", "logit_diff"), ("heads", "write", "kl"), (["resid_pre", "resid_mid", "mlp_out"], "z", "prob")],
)
def test_attribution_is_two_forward_passes_and_one_backward_pass_a_batch(
    batches: int, sites: Any, what: str, metric: str
) -> None:
    options: dict[str, Any] = {
        "sites": sites, "what": what, "metric": metric, "method": "attribution", "batch_size": 4, "normalise": False,
        "confirm": 0.0, "together": 0,
    }  # fmt: skip
    pair, given = pair_of("llama"), rows(4 * batches)
    length = len(tokenizer()(str(given[0]))["input_ids"])
    with metered(pair.base, pair.tuned) as meter:
        found = patching(pair, given, **options)
    assert meter.calls == {"base": batches, "tuned": batches} and meter.trainable == 0
    assert meter.forward == 2 * batches * 3 * 4 * length, "every layer, every token, once in each model"
    assert meter.backward == batches * 3 * 4 * length
    assert (found.provenance.forward_passes, found.provenance.backward_passes) == (2 * batches, batches)
    with metered(pair.tuned) as meter:
        found = patching(pair.tuned, given, **options)
    assert meter.calls == {"tuned": 2 * batches} and meter.backward == batches * 3 * 4 * length
    assert (found.provenance.forward_passes, found.provenance.backward_passes) == (2 * batches, batches)


def test_on_the_targets_inputs_the_source_runs_once_more() -> None:
    pair, given = pair_of("llama"), rows(8)
    for method, backward in (("attribution", 2), ("exact", 0)):
        with metered(pair.base, pair.tuned) as meter:
            found = patching(
                pair, given, metric="kl", inputs="target", method=method, confirm=0.0, together=0, batch_size=4,
                layers=[0], normalise=False,
            )  # fmt: skip
        assert meter.calls["tuned"] == 4, "its own run, and one on the target's residual stream"
        assert found.provenance.backward_passes == backward
        if method == "attribution":
            assert meter.calls["base"] == 2 and found.provenance.forward_passes == 6


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("method", ["exact", "attribution", "ig"])
def test_the_cost_in_the_result_is_what_the_layers_did(method: str, positions: str) -> None:
    pair, given = pair_of("llama"), rows(8)
    patching(pair, given, together=0, normalise=False, layers=[1])  # looks at the model once, on one token
    length = len(tokenizer()(str(given[0]))["input_ids"])
    with metered(pair.base, pair.tuned) as meter:
        found = patching(
            pair, given, method=method, positions=positions, metric="kl", confirm=0.3, batch_size=4, ig_steps=3,
            normalise=False, controls=2,
        )  # fmt: skip
    one = 3 * 4 * length
    assert found.provenance.forward_passes == math.ceil(round(meter.forward / one, 6))
    assert found.provenance.backward_passes == math.ceil(round(meter.backward / one, 6))
    assert (method == "exact") == (meter.backward == 0)
    assert meter.calls["tuned"] == 2, "the source is recorded once a batch, whatever is patched afterwards"


def test_runs_are_kept_for_the_next_sweep_as_far_as_they_fit() -> None:
    pair = pair_of("llama")
    task = random_task(pair.tuned, pair.base)
    cells = all_cells(pair.base, kinds_of("heads", "z"), [0, 1, 2], [(-1,)])
    patches = [(cell,) for cell in cells]

    def spent(keep: int) -> tuple[float, int, np.ndarray]:
        runs = Recorded(task, cells, "logit_diff", 2, keep=keep)
        attributions(task, cells, "logit_diff", runs=runs)
        with metered(pair.tuned) as meter:
            effects = [sweep(task, patches, "logit_diff", runs=runs).effects for _ in range(2)]
        assert np.array_equal(*effects)
        return runs.passes, meter.calls["tuned"], effects[0]

    (kept, calls, effects), (anew, calls_anew, other) = spent(recorded.KEPT_BYTES), spent(0)
    one = next(Recorded(task, cells, "logit_diff", 2).batches()).run.nbytes
    _, calls_half, _ = spent(one)
    assert (calls, calls_half, calls_anew) == (0, 2, 4) and anew - kept > 8
    assert np.array_equal(effects, other), "a run with gradients is the run without, bit for bit"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_run_with_gradients_is_the_plain_run(family: str) -> None:
    """Bit for bit, at every place that can be patched, so that equal values are seen to be equal."""
    pair = pair_of(family)
    task = random_task(pair.tuned, pair.base)
    known = pair.base.sites()
    kinds = [kind for kind in ("z", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
             if any(name.endswith(f"hook_{kind}") for name in known)]  # fmt: skip
    cells = all_cells(pair.base, kinds, [0, 1, 2], [None])
    runs = Recorded(task, cells, "prob", 4, keep=0)
    with frozen(pair.base.hf):
        plain = next(runs.batches())
    graded = next(runs.batches([(kind, layer) for kind in kinds for layer in range(3)]))
    assert torch.equal(plain.run.logits, graded.run.logits) and not graded.run.logits.requires_grad
    assert plain.run.values.keys() == graded.run.values.keys()
    for site, value in plain.run.values.items():
        assert torch.equal(value, graded.run.values[site]) and not graded.run.values[site].requires_grad
    assert len(graded.gradients) == 3 * len(kinds) and all(
        gradient.abs().sum() > 0 for gradient in graded.gradients.values()
    )
    assert graded.run.graded is None


def linear_model() -> AdaptedModel:
    """From layer 1's heads to the logits everything is linear: MLPs silent, no final norm, later heads unread."""
    hf = tiny_model("llama", dtype=torch.float64)
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.mlp.down_proj.weight.zero_()
        hf.model.layers[2].self_attn.o_proj.weight.zero_()
    hf.model.norm = torch.nn.Identity()
    return AdaptedModel(hf, tokenizer(), role="model")


def test_in_a_linear_model_the_estimates_are_exact() -> None:
    model = linear_model()
    task = random_task(model, model)
    places = [None, (-1,), (-2,)]
    cells = [Cell(kind, 1, head, place) for kind in ("z", "write") for head in range(4) for place in places]
    cells += [Cell(kind, 1, None, place) for kind in ("resid_mid", "resid_post", "attn_out") for place in places]
    exact = sweep(task, [(cell,) for cell in cells], "logit_diff").effects
    assert np.abs(exact).max() > 0.1
    for steps in (0, 3):
        estimate, _, _ = attributions(task, cells, "logit_diff", steps=steps)
        assert estimate == pytest.approx(exact, abs=1e-10)


def test_integrated_gradients_replay_only_what_can_change() -> None:
    pair = pair_of("llama", torch.float64)
    task = random_task(pair.tuned, pair.base)
    for kind, place in (("z", (-1,)), ("write", None), ("resid_pre", (-1,)), ("mlp_out", (-2,))):
        cells = all_cells(pair.base, [kind], [0, 1, 2], [place])
        short, forward, backward = attributions(task, cells, "logit_diff", steps=4)
        whole = Recorded(task, cells, "logit_diff", 16)
        whole._exact = {True: False, False: False}
        found, all_forward, all_backward = attributions(task, cells, "logit_diff", steps=4, runs=whole)
        assert short == pytest.approx(found, abs=1e-9) and np.abs(found).max() > 1e-3
        assert (all_forward, all_backward) == (2 + 3 * 4, 3 * 4)
        assert forward < all_forward and backward == pytest.approx(8 / (20 if place == (-1,) else 1))


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("where", ["forward", "metric"])
def test_weights_ask_for_gradients_as_before_also_after_an_exception(
    steps: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = pair_of("llama")
    task = random_task(pair.tuned, pair.base)
    for number, parameter in enumerate(pair.base.hf.parameters()):
        parameter.requires_grad_(number % 3 > 0)
    before = [parameter.requires_grad for parameter in pair.base.hf.parameters()]
    cells = all_cells(pair.base, ["z"], [0, 1, 2], [None])

    def unchanged() -> bool:
        now = list(pair.base.hf.parameters())
        return [one.requires_grad for one in now] == before and all(one.grad is None for one in now)

    attributions(task, cells, "prob", steps=steps)
    assert unchanged() and pair.base.n_hooks == 0

    def fail(*_: Any) -> None:
        if torch.is_grad_enabled() and not any(parameter.requires_grad for parameter in pair.base.hf.parameters()):
            raise RuntimeError("broken on purpose")

    if where == "forward":
        pair.base.hf.model.layers[2].register_forward_hook(fail)
    else:
        monkeypatch.setattr(recorded.Metric, "__call__", lambda _self, logits: fail() or logits.sum(-1))
    with pytest.raises(RuntimeError, match="on purpose"):
        attributions(task, cells, "prob", steps=steps)
    assert unchanged() and pair.base.n_hooks == 0 and "forward" not in pair.base.hf.lm_head.__dict__


def test_an_adapter_pair_is_estimated_as_two_models_are(tmp_path: Path) -> None:
    """One copy of the weights is switched between the runs; gradients must be of the target's view."""
    base = tiny_model("llama")
    base.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(tiny_model("llama"), config)
    adapted.save_pretrained(tmp_path / "adapter")
    pair = load_pair(str(tmp_path / "base"), str(tmp_path / "adapter"), device="cpu")
    assert pair.one_copy
    two = Pair(base, adapted.merge_and_unload())
    options = {"method": "attribution", "confirm": 0.2, "together": 0, "normalise": False, "metric": "prob"}
    for source in ("tuned", "base"):
        for inputs in ("source", "target"):
            one = patching(pair, rows(6), source=source, inputs=inputs, **options)
            other = patching(two, rows(6), source=source, inputs=inputs, **options)
            assert one.effects == pytest.approx(other.effects, abs=1e-5) and np.abs(one.effects).max() > 1e-4
            assert one.provenance.forward_passes == other.provenance.forward_passes


@pytest.mark.parametrize("metric", ["logit_diff", "prob", "kl"])
def test_equal_models_are_estimated_to_do_exactly_nothing(metric: str) -> None:
    twin = Pair(tiny_model("llama"), tiny_model("llama"))
    options: dict[str, Any] = {"method": "attribution", "metric": metric, "confirm": 0.2, "together": 0}
    for inputs in ("source", "target"):
        found = patching(twin, rows(12), inputs=inputs, normalise=False, **options)
        assert (found.effects == 0).all() and (found.table.q == 1).all() and found.source_value == found.target_value
        with pytest.raises(UserError, match="Nothing to localize"):
            patching(twin, rows(12), inputs=inputs, **options)


def test_nothing_confirmed_keeps_both_runs_values_and_the_correct_prompts() -> None:
    pair, given = pair_of("llama"), rows(12)
    exact = patching(pair, given, normalise=False, together=0)
    options = {"method": "attribution", "confirm": 0.0, "together": 0, "normalise": False}
    found = patching(pair, given, **options)
    assert found.source_value == exact.source_value and found.target_value == exact.target_value
    assert not found.table.exact.any() and np.abs(found.effects).max() > 0
    try:
        kept = patching(pair, given, only_correct=True, **options)
    except UserError:
        assert exact.source_value[2] <= 0
    else:
        assert kept.provenance.settings["incorrect_dropped"] == 12 - len(kept.effects)
