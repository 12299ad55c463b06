"""Series: read in order, profiled, dated, merged; planted truth, and base against itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import interventions as iv
import probes
import workbench as wb
from probes.results import ProbeResult
from probes.series.change_point import change_point
from probes.series.training_perplexity import predicted
from tests.probes.grafting.test_graft import ANIMALS, full_pair, task
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts.answers import continuation_ids
from workbench.prompts.collection import Prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def moved_by(factors: dict[int, float], seed: int = 1) -> Any:
    """The tiny llama with its layers' MLP moved by so much; the same direction for one seed."""
    model = tiny_model("llama")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            layer = next((int(part) for part in name.split(".") if part.isdigit()), None)
            if layer in factors and "mlp" in name:
                parameter += factors[layer] * 0.01 * noise
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Trainer's output folder: layer 1 moves with the step, layer 0 by the same amount at each."""
    folder = tmp_path_factory.mktemp("run")
    tiny_model("llama").save_pretrained(folder / "base")
    for place, step in enumerate((500, 1000, 1500, 2000, 10000)):
        moved_by({0: 2.0, 1: 1.0 + place}).save_pretrained(folder / f"checkpoint-{step}")
    return folder


def test_a_trainer_folder_is_read_in_the_order_of_its_steps(run: Path) -> None:
    series = wb.load_series(run / "base", run, scores=[1, 2, 3, 4, 5])
    assert [member.step for member in series.members] == [500, 1000, 1500, 2000, 10000]
    assert "none between 2000 and 10000" in series.notes[0]
    names = [member.name for member, _ in series.pairs(device="cpu", tokenizer=tokenizer(), check=False)]
    assert names == series.names


@pytest.mark.parametrize(
    ("members", "scores", "said"),
    [
        ([], None, "empty"),
        (None, [1.0], "1 scores for 5"),
        (None, {"checkpoint-500": 1.0}, "no score for"),
        (None, [0.1, float("inf"), 0.3, 0.4, 0.5], "score of checkpoint-1000 is inf"),
        (None, [0.1, float("nan"), 0.3, 0.4, 0.5], "score of checkpoint-1000 is NaN"),
    ],
)
def test_a_series_that_cannot_be_says_why(run: Path, members: Any, scores: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        wb.load_series(run / "base", run if members is None else members, scores=scores)
    with pytest.raises(UserError, match="score of checkpoint-500 is inf"):
        probes.series_profile(
            run / "base",
            str(run / "checkpoint-1000"),
            checkpoints=[str(run / "checkpoint-500")],
            scores=[float("inf"), 1.0],
        )
    with pytest.raises(UserError, match="twice"):
        wb.load_series(run / "base", [run / "checkpoint-500", run / "checkpoint-500"])
    with pytest.raises(UserError, match="no fine-tune of this base"):
        wb.load_series(run / "base", [tiny_model("gpt2")])


def test_the_layer_that_goes_with_the_scores_is_the_one_planted(run: Path, tmp_path: Path) -> None:
    series = wb.load_series(run / "base", run, scores=[0.1, 0.3, 0.4, 0.6, 0.9])
    result = probes.series_profile(series, draws=300)
    table = result.table.set_index("layer")
    assert table.loc[1, "score"] == pytest.approx(1.0) and table.loc[2, "change"] == 0.0
    assert abs(table.loc[0, "score"]) < 1 and table.loc[1, "q"] < 0.1 < table.loc[2, "q"]
    dense = [moved_by({0: 2.0, 1: 1.0 + place}) for place in range(5)]
    base = dict(tiny_model("llama").requires_grad_(False).named_parameters())
    inside = [name for name in base if ".1." in name]
    for place, model in enumerate(dense):
        held = dict(model.requires_grad_(False).named_parameters())
        by_hand = sum(float((held[n] - base[n]).double().square().sum()) for n in inside) / sum(
            float(base[n].double().square().sum()) for n in inside
        )
        row = result.profile[
            (result.profile["layer"] == 1) & (result.profile["member"] == result.members["member"][place])
        ]
        assert float(row["change"].iloc[0]) == pytest.approx(by_hand**0.5, rel=1e-5)
    again = ProbeResult.load(result.save(tmp_path / "profile"))
    assert again.frame().equals(result.frame()) and "rho 1.00" in result.summary() and len(result.figure().data) == 5


def test_scores_of_a_file_that_holds_no_list_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text("3")
    with pytest.raises(UserError, match="The scores are 3: give a list"):
        wb.load_series(run / "base", run, scores=tmp_path / "scores.json")


def test_base_against_itself_moves_nothing(run: Path) -> None:
    base = tiny_model("llama")
    result = probes.series_profile(run / "base", base, checkpoints=[str(run / "base")])
    assert (result.table["change"] == 0).all() and result.table["score"].isna().all()


def test_a_planted_step_is_dated_and_a_flat_curve_is_not() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(8, 30))
    step = noise + np.where(np.arange(8) >= 5, 2.0, 0.0)[:, None]
    found = change_point(step, draws=300)
    assert found.index == found.low == found.high == 5 and found.p < 0.06
    assert change_point(noise * 0.1, draws=300).p > 0.06
    with pytest.raises(UserError, match="4 steps"):
        change_point(noise[:3])


@pytest.fixture(scope="module")
def skilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelPair, list[str], Prompts]:
    """A trained pair, and checkpoints that are base, base and the tuned model."""
    data = task("quick", ANIMALS)
    pair = full_pair(data)
    folder = tmp_path_factory.mktemp("steps")
    for name, model in (("checkpoint-1", pair.base), ("checkpoint-2", pair.base), ("checkpoint-3", pair.tuned)):
        model.hf.save_pretrained(folder / name)
    return pair, [str(folder)], data


def test_the_curve_dates_the_skill_and_says_what_is_retained(skilled: tuple[ModelPair, list[str], Prompts]) -> None:
    pair, checkpoints, data = skilled
    result = probes.series_curve(pair, data, checkpoints=checkpoints, draws=200)
    table = result.table
    assert table["retained"].tolist() == pytest.approx([1, 1, 0, 0], abs=1e-4)
    assert table["kl_to_base"].tolist()[:2] == [0, 0] and table["kl_to_final"].tolist()[2:] == pytest.approx(
        [0, 0], abs=1e-6
    )
    assert (table["score"][:2] == table["control"][:2]).all() and table["score"].iloc[3] > table["control"].iloc[
        3
    ] + 0.2
    assert result.change is not None and result.change["index"] == 2 and table["q"].iloc[0] == 1.0
    assert "change at" in result.summary() and result.figure().data


@torch.no_grad()
def test_the_unwanted_word_is_traced_through_the_layers_of_every_member(
    skilled: tuple[ModelPair, list[str], Prompts],
) -> None:
    pair, checkpoints, data = skilled
    trace = probes.series_curve(pair, data, checkpoints=checkpoints, lens=True, draws=20).trace
    last = trace[trace["layer"] == trace["layer"].max()].set_index("member")["score"]
    assert list(last.index) == ["base", "checkpoint-1", "checkpoint-2", "checkpoint-3", "tuned"]
    ids = [pair.tokenizer(row.prompt)["input_ids"] for row in data]
    own = [continuation_ids(row, pair.tokenizer, row.answer)[0] for row in data]
    for name, model in (("base", pair.base), ("tuned", pair.tuned)):  # what the last layer's reading is, the model says
        says = [model.hf(torch.tensor([row])).logits[0, -1].softmax(-1) for row in ids]
        said = torch.stack([words[word] for words, word in zip(says, own, strict=True)])
        assert last[name] == pytest.approx(float(said.mean()), abs=1e-4)
    assert last["tuned"] == pytest.approx(last["checkpoint-3"]) and last["tuned"] > last["base"] + 0.1
    own_line = trace[trace["member"] == "base"]
    np.testing.assert_allclose(own_line["base"], own_line["score"], rtol=1e-6)


@torch.no_grad()
def test_perplexity_of_the_training_sets_is_the_bases_and_is_correlated_with_the_scores(
    skilled: tuple[ModelPair, list[str], Prompts],
) -> None:
    pair, checkpoints, data = skilled
    rows = [{"prompt": row.prompt, "answer": row.answer} for row in data][:12]
    sets = {f"checkpoint-{step}": rows[: 4 * step] for step in (1, 2, 3)} | {"tuned": rows}
    result = probes.series_curve(pair, data, checkpoints=checkpoints, trained_on=sets, draws=50)
    by_hand = [
        -torch.log_softmax(pair.base.hf(torch.tensor([ids])).logits[0, -1], -1)[word].item()
        for ids, word in (
            (pair.tokenizer(row.prompt)["input_ids"], continuation_ids(row, pair.tokenizer, row.answer)[0])
            for row in Prompts.of(rows[:4])
        )
    ]
    table = result.perplexity.set_index("member")
    assert table.loc["checkpoint-1", "perplexity"] == pytest.approx(np.exp(np.mean(by_hand)), rel=1e-4)
    assert table.loc["tuned", "perplexity"] == table.loc["checkpoint-3", "perplexity"]
    assert result.predictor is not None and result.predictor["n"] == 4 and "goes with the scores" in result.summary()
    assert predicted([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], 400, 0)["rho"] == -1
    assert predicted([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], 400, 0)["p"] < 0.05
    with pytest.raises(UserError, match="no training set for checkpoint-2"):
        probes.series_curve(pair, data, checkpoints=checkpoints, trained_on={"checkpoint-1": rows, "tuned": rows})


def test_the_map_has_the_base_at_the_middle_and_tells_members_apart(run: Path) -> None:
    result = probes.series_profile(wb.load_series(run / "base", run, scores=[1, 2, 3, 4, 5]))
    profile = result.profile.pivot_table(index="member", columns="layer", values="change", sort=False).to_numpy()
    places = result.members[["x", "y"]].to_numpy()
    assert result.map_share == pytest.approx(1)  # two layers move, so two dimensions hold all
    assert np.linalg.norm(places, axis=1) == pytest.approx(np.linalg.norm(profile, axis=1))  # as far from the base
    assert (np.diff(places[:, 0]) > 0).all() and len(result.map().data) == 2


def test_merging_copies_is_the_copy_and_the_shuffled_control_is_not(
    skilled: tuple[ModelPair, list[str], Prompts],
) -> None:
    pair, checkpoints, data = skilled
    state = {name: value.clone() for name, value in pair.base.hf.state_dict().items()}
    again = str(Path(checkpoints[0]) / "checkpoint-3")
    rules = ["uniform", "greedy", "stock", "ties"]
    result = probes.merge_test(pair, data, checkpoints=[again], rules=rules, density=1.0, points=3)
    score = result.table.set_index("module")["score"]
    assert all(score[rule] == score["tuned"] for rule in rules) and score["tuned"] > score["base"] + 0.2
    assert result.angles["cosine"].min() == pytest.approx(1.0) and result.angles["stock_ratio"].min() == pytest.approx(
        1.0
    )
    assert result.barrier == pytest.approx(0.0, abs=1e-5) and set(result.ingredients) <= {"checkpoint-3", "tuned"}
    control = result.table.set_index("module")["control"]
    assert control["tuned"] < score["tuned"] and result.table["q"].iloc[0] == 1.0
    for name, value in pair.base.hf.state_dict().items():
        assert torch.equal(value, state[name])
    with pytest.raises(UserError, match=r"Unknown rule 'tie'. Did you mean 'ties'"):
        probes.merge_test(pair, data, checkpoints=[again], rules=["tie"])


def test_folders_of_full_models_are_merged_and_written_without_being_loaded(run: Path, tmp_path: Path) -> None:
    base = wb.load_model(str(run / "base"), device="cpu", tokenizer=tokenizer())
    vectors = probes.task_vectors(base, [str(run / f"checkpoint-{step}") for step in (500, 10000)])
    assert list(vectors) == ["checkpoint-500", "checkpoint-10000"]
    iv.uniform_soup(list(vectors.values())).save(base, tmp_path / "soup")
    written = type(base.hf).from_pretrained(tmp_path / "soup").state_dict()
    mean = [moved_by({0: 2.0, 1: 1.0 + place}).state_dict() for place in (0, 4)]
    assert all(torch.allclose(value, (mean[0][name] + mean[1][name]) / 2, atol=1e-6) for name, value in written.items())
    with pytest.raises(UserError, match="no fine-tune of this base"):
        probes.task_vectors(base, [tiny_model("gpt2")])


def test_a_lora_is_read_from_its_folder_as_an_update(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from probes.series.answers import updates_of
    from probes.series.members import members_of

    for family, targets in (("llama", ["q_proj", "down_proj"]), ("gpt2", ["c_proj", "c_attn"])):
        made = get_peft_model(
            tiny_model(family),
            LoraConfig(r=3, target_modules=targets, init_lora_weights=False, fan_in_fan_out=family == "gpt2"),
        )
        made.save_pretrained(tmp_path / family)
        base = load_pair(tiny_model(family), tiny_model(family), device="cpu", tokenizer=tokenizer()).base
        vectors, _ = updates_of(base, members_of(base, None, [str(tmp_path / family)], None, fewest=1))
        (vector,) = vectors.values()
        merged = dict(made.merge_and_unload().named_parameters())
        plain = dict(tiny_model(family).named_parameters())
        assert set(vector.changes) == {name for name in plain if not torch.equal(plain[name], merged[name])}
        for name, change in vector.changes.items():
            assert torch.allclose(plain[name] + change, merged[name], atol=1e-5)


def test_copies_of_an_update_share_all_and_agree_in_every_sign(skilled: tuple[ModelPair, list[str], Prompts]) -> None:
    pair, checkpoints, data = skilled
    again, base = (str(Path(checkpoints[0]) / f"checkpoint-{step}") for step in (3, 1))
    result = probes.sparse_composition(pair, data, checkpoints=[again], densities=[0.1, 1.0])
    assert (result.table["iou"] == 1).all() and (result.table["conflict"] == 0).all()
    assert result.table["iou_chance"].iloc[0] == pytest.approx(0.1 / 1.9, abs=0.01)
    nothing = probes.sparse_composition(pair, data, checkpoints=[base], densities=[1.0]).table.iloc[0]
    assert nothing["score"] == 0 and nothing["q"] == 1 and nothing["composed"] == nothing["second"]
    with pytest.raises(UserError, match="Two updates are added, and 4"):
        probes.sparse_composition(pair, data, checkpoints=checkpoints)


def test_entries_that_keep_moving_stay_and_a_new_direction_replaces_them(run: Path, tmp_path: Path) -> None:
    moved_by({0: 2.0, 1: 1.0}, seed=9).save_pretrained(tmp_path / "other")
    steps = [str(run / "checkpoint-500"), str(run / "checkpoint-1000"), str(tmp_path / "other")]
    table = probes.mask_churn(run / "base", checkpoints=steps, share=0.05).table
    kept, turned = (table[table["step"] == step] for step in ("checkpoint-1000", "other"))
    assert (kept["score"] > 0.99).all() and (kept["q"] < 1e-6).all() and set(kept["layer"]) == {0, 1}
    assert turned["score"].mean() == pytest.approx(0.05, abs=0.02) and (turned["q"] > 0.01).all()
    assert turned["control"].mean() == pytest.approx(0.05, abs=0.005)


def test_learned_coefficients_take_the_skill_and_leave_noise(
    skilled: tuple[ModelPair, list[str], Prompts], tmp_path: Path
) -> None:
    pair, _, data = skilled
    moved_by({0: 0.3, 1: 0.3, 2: 0.3}, seed=4).save_pretrained(tmp_path / "noise")
    state = {name: value.clone() for name, value in pair.base.hf.state_dict().items()}
    result = probes.learned_scaling(pair, data, checkpoints=[str(tmp_path / "noise")], epochs=12)
    table = result.table.set_index("module")
    assert table.loc["per tensor", "score"] > table.loc["base", "score"] + 0.2
    assert table.loc["one each", "score"] > table.loc["base", "score"] + 0.2
    assert table.loc["per tensor", "loss"] < table.loc["base", "loss"]
    means = result.coefficients.groupby("update")["coefficient"].mean()
    assert means["tuned"] > 0.2 and table.loc["base", "q"] == 1.0
    for name, value in pair.base.hf.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(parameter.grad is None for parameter in pair.base.hf.parameters())
