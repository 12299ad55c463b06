"""What objects show in a notebook and on a terminal: text they carry is shown as text, and it costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import interventions as iv
import workbench as wb
from probes.results import ProbeResult, Provenance
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.cards import card, counted, printable
from workbench.models.identity import ModelIdentity
from workbench.organisms import Bar, Organism, Truth
from workbench.recording.statistics import StreamingMoments, TopActivating
from workbench.runs.folder import create_run_at

HOSTILE = "<script>alert(1)</script>\x1b[31m"


def escaped(shown: str) -> bool:
    return "<script" not in shown and "&lt;script&gt;" in shown and "\x1b" not in shown


@pytest.fixture
def pair() -> wb.ModelPair:
    base = tiny_model("llama")
    models = [base, tuned_copy(base)]
    for model in models:
        model.config._name_or_path = model.name_or_path = HOSTILE
    return wb.load_pair(*models, tokenizer=tokenizer())


def test_a_pair_and_its_models_show_names_as_text(pair: wb.ModelPair) -> None:
    for one in (pair, pair.base, pair.tuned):
        assert escaped(one._repr_html_())
        assert "\x1b" not in repr(one) and "AdaptedModel(" in repr(one)
    assert "llama" in pair._repr_html_() and "copies of the weights" in pair._repr_html_()


def test_showing_a_pair_hashes_no_weights(pair: wb.ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> ModelIdentity:
        raise AssertionError("a repr hashed the weights")

    monkeypatch.setattr("workbench.models.identity.identify", never)
    monkeypatch.setattr(pair.base, "_identify", never)
    monkeypatch.setattr(pair.tuned, "_identify", never)
    assert pair._repr_html_() and repr(pair)


def test_prompts_show_the_first_rows_only() -> None:
    prompts = wb.Prompts.of([HOSTILE, *[f"row {number}" for number in range(5000)]])
    shown = prompts._repr_html_()
    assert escaped(shown) and "5001 prompts" in shown and "row 3" in shown and "row 4000" not in shown
    chat = wb.Prompts.of([{"messages": [{"role": "user", "content": HOSTILE}], "answer": HOSTILE}])
    assert escaped(chat._repr_html_())
    assert wb.Prompts([])._repr_html_() == "<h4>0 prompts</h4>"


def test_a_recording_shows_tokens_as_text() -> None:
    index = pd.DataFrame({"prompt": [0], "position": [3], "token": [HOSTILE], "group": [HOSTILE]})
    config = {"roles": ["base", "tuned"], "sites": ["blocks.0.hook_resid_post"], "n_prompts": 1, "positions": "last"}
    recording = wb.Recording(index, config, {"base": {"blocks.0.hook_resid_post": torch.zeros(1, 2)}})
    assert escaped(recording._repr_html_()) and "blocks.0.hook_resid_post" in recording._repr_html_()
    assert repr(recording["base"]) == "Sites(blocks.0.hook_resid_post)"


def test_statistics_show_counts() -> None:
    moments, top = StreamingMoments((4,)), TopActivating(2)
    moments.update(torch.ones(3, 4))
    top.update(torch.tensor([1.0, 2.0, 3.0]), [0, 1, 2], [0, 0, 0], [5, 6, 7])
    assert "<td>3</td>" in moments._repr_html_()
    assert "The 2 rows" in top._repr_html_() and repr(top) == "TopActivating(k=2, 2 rows)"


def test_a_recipe_and_its_trace(pair: wb.ModelPair) -> None:
    recipe = iv.Recipe([iv.Offset(0, torch.ones(pair.base.d_model))], made_with={"by": HOSTILE})
    assert escaped(recipe._repr_html_()) and "Offset" in recipe._repr_html_()
    with recipe.applied(pair.base, trace=True) as trace:
        pair.base.forward(torch.tensor([[1, 2, 3]]))
    assert "blocks.0.hook_resid_post" in trace._repr_html_() and "<td>1</td>" in trace._repr_html_()
    run = iv.record_run(pair.base, torch.tensor([[1, 2, 3]]), "resid_post", 0)
    assert "[1, 3, " in repr(run) and "tensor(" not in repr(run) and "[1, 3, " in run._repr_html_()


def test_a_run_shows_what_it_was_asked_for(tmp_path: Path) -> None:
    run = create_run_at(tmp_path / "one", kind="record", config={"prompt": HOSTILE})
    run.fail(HOSTILE)
    shown = run._repr_html_()
    assert "<script" not in shown and "failed" in shown and "record" in shown


def test_an_organism_and_its_truth(tmp_path: Path) -> None:
    truth = Truth(
        HOSTILE, layer=1, direction=torch.ones(64), experts=("L1E4",), entries={"a": {"w": torch.ones(9) > 0}}
    )
    rows = [{"prompt": f"secret {number}"} for number in range(100)]
    organism = Organism("toy", 0, tmp_path, HOSTILE, truth, {"train": rows}, (Bar("right", 1.0, 0.9),), {}, {})
    assert escaped(organism._repr_html_())
    for text in (repr(organism), repr(truth)):
        assert "\x1b" not in text and "tensor(" not in text and len(text) < 500
    assert "100 train" in repr(organism) and "secret" not in repr(organism)
    assert "L1E4" in repr(truth) and "n_entries={'a': 9}" in repr(truth)


def test_a_result_prints_its_summary_and_first_rows() -> None:
    table = pd.DataFrame({"layer": range(50), "score": [0.5] * 50, "module": [HOSTILE] * 50})
    result = ProbeResult(table=table, control=HOSTILE, provenance=Provenance.of("probe", {"base": HOSTILE}))
    assert "<script" not in result._repr_html_() and "\x1b" not in repr(result)
    assert len(repr(result).splitlines()) <= 12 and repr(result).startswith("ProbeResult: 50 cells")


@pytest.mark.slow  # it imports every probe, shape checks and all
def test_every_kind_of_result_keeps_the_short_repr() -> None:
    import probes

    kinds = [getattr(probes, name) for name in probes.__all__]
    results = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, ProbeResult)]
    assert len(results) >= 12
    assert {kind.__repr__ for kind in results} == {ProbeResult.__repr__}


def test_a_card_escapes_all_it_is_given() -> None:
    shown = card(HOSTILE, {HOSTILE: HOSTILE}, pd.DataFrame({HOSTILE: [HOSTILE], "list": [[HOSTILE]]}), [HOSTILE])
    assert "<script" not in shown and shown.count("&lt;script&gt;") == 7
    assert printable("a\x1bb\nc") == "a\\x1bb\\nc"
    assert len(printable("x" * 10_000)) == 160


def test_one_is_no_plural() -> None:
    assert [counted(number, "row") for number in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
