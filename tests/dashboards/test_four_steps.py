"""The first page of a pair: four steps with their states, the answers, the candidates, the chat and what is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from streamlit.testing.v1 import AppTest

from dashboards import jobs
from dashboards.chatting import ChatReply, ChatTurn, Sampling, messages_of, reply
from dashboards.state import BASE, RUN, TUNED
from dashboards.steps import exports
from dashboards.steps.as_experiment import look_experiment
from dashboards.steps.as_notebook import look_notebook
from dashboards.steps.keep import commands
from dashboards.steps.subject import Subject
from dashboards.steps.turn import dose_of, parts_of
from dashboards.steps.turn import sentence_of as turn_sentence
from dashboards.steps.turn_comparison import in_two_classes
from interventions.exchange.formats import reason_against
from interventions.recipe import Recipe
from tests.dashboards.sample_runs import APP, opened, shown, told_run, warned
from tests.tunescope.look.test_steps import refusal_rows
from tunescope.experiments import Experiment
from tunescope.look.keep import keep
from tunescope.look.notes import notes_of
from tunescope.look.steps import Look, run_steps
from workbench import organisms, runs
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.progress import Silent
from workbench.prompts import Prompts
from workbench.results import Result
from workbench.runs import Run


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    grown = organisms.build("refusal-moe")
    return load_pair(str(grown.base), str(grown.tuned), device="cpu")


@pytest.fixture(scope="module")
def home(pair: ModelPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with one look at the pair."""
    grown = organisms.build("refusal-moe")
    look = run_steps(Look(pair, refusal_rows(), str(grown.base), str(grown.tuned)), Silent(), lambda _: None)
    home = tmp_path_factory.mktemp("home")
    config = {"verb": "look", "base": look.base, "tuned": look.tuned, "seed": 0, "limit": 60}
    with runs.begun("look", config, home / "look") as run:
        keep(look, run)
    return home


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    grown = organisms.build("refusal-moe")
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv(RUN, raising=False)
    monkeypatch.setenv(BASE, str(grown.base))
    monkeypatch.setenv(TUNED, str(grown.tuned))
    yield
    jobs.desk().clear()


def subject_in(home: Path) -> Subject:
    run: Run = runs.open(home / "look")
    grown = organisms.build("refusal-moe")
    return Subject(str(grown.base), str(grown.tuned), run, notes_of(run))


def test_a_pair_with_nothing_recorded_opens_on_four_steps() -> None:
    app = opened("look")
    assert app.header[0].value.endswith("/base → tuned")
    cards = " ".join(element.value for element in app.markdown)
    assert all(f"**{number} {step}**" in cards for number, step in enumerate(
        ("What changed?", "Where?", "Turn it.", "Keep it."), 1
    ))  # fmt: skip
    assert cards.count("not run") == 4 and not app.button(key="run-all").disabled
    app.segmented_control(key="look-from").set_value("paste").run()
    assert app.button(key="run-all").disabled  # there are no prompts yet
    assert not app.error, shown(app)


def test_runs_about_other_models_do_not_take_the_pairs_place(tmp_path: Path) -> None:
    told_run(tmp_path / "runs", "other")
    app = AppTest.from_file(APP, default_timeout=60).run()
    assert not app.exception and app.selectbox(key="run").value == ""
    assert app.header[0].value.endswith("/base → tuned")
    app.selectbox(key="run").set_value("other").run()
    assert not app.exception and app.selectbox(key="run").value == "other"


def test_a_step_runs_in_the_background_and_its_answers_appear(monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened("look")
    app.segmented_control(key="look-from").set_value("paste").run()
    app.text_area(key="look-prompts").set_value("\n".join(str(row) for row in refusal_rows()[12:20])).run()
    app.button(key="run-1").click().run()
    job = jobs.desk().job
    grown = organisms.build("refusal-moe")
    assert job is not None and job.about == (str(grown.base), str(grown.tuned))
    ended = _waited(job)
    assert ended == "done", job.said
    app.run()
    assert not app.exception and not app.error, shown(app)
    answers = app.dataframe[0].value
    assert len(answers) == 8 and answers["changed"].sum() == 4
    assert app.selectbox(key="run").value.startswith("look-")


def _waited(job: jobs.Job) -> str:
    import time

    for _ in range(600):
        if job.state != "running":
            break
        time.sleep(0.1)
    return job.state


def test_every_step_of_a_look_is_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(home))
    for step in ("1", "2", "3", "4"):
        app = opened("look", step=step)
        assert not app.exception and not app.error, shown(app)
        assert any(step in element.value for element in app.header)
        assert " ".join(one.value for one in app.markdown).count("badge[:material/check_circle: found]") == 4
    assert "tunescope look" in app.code[0].value


def test_a_link_to_a_step_that_is_not_there_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(home))
    for name, value, told in (
        ("step", "9", "There is no step 9: steps go from 1 to 4"), ("prompt", "nope", "nope is no number of a prompt"),
        ("run", "nope", "There is no run nope here"), ("layer", "99", "There is no layer 99 here"),
    ):  # fmt: skip
        app = AppTest.from_file(APP, default_timeout=60)
        app.query_params[name] = value
        app.run()
        assert not app.exception and told in warned(app).replace("\\", "")


def test_answers_are_searched_and_the_selected_prompt_is_shown_whole(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(home))
    app = opened("look", step="1", prompt="3")
    assert len(app.dataframe[0].value) == 32
    app.segmented_control(key="answers-show").set_value("changed").run()
    assert app.dataframe[0].value["changed"].all() and len(app.dataframe[0].value) == 16
    app.text_input(key="answers-search").set_value(refusal_rows()[3].shown).run()
    assert app.dataframe[0].value["#"].tolist() == [3]
    assert "**Prompt 3**" in [element.value for element in app.markdown]


def test_candidates_are_made_again_as_they_were_tried(home: Path, pair: ModelPair) -> None:
    subject = subject_in(home)
    table = subject.table("candidates")
    made = parts_of(subject, table)
    assert made["direction-off"][1] == "tuned" and made["weights-0.5"][1] == "base"
    refused = [str(row) for row in refusal_rows()[:2]]
    recipe = made["direction-off"][0].made(pair)
    with recipe.applied(pair.tuned):
        assert not [text for text in pair.tuned.generate(refused, max_new_tokens=2) if "sorry" in text]
    assert [text.strip() for text in pair.tuned.generate(refused, max_new_tokens=1)] == ["sorry"] * 2
    dose = dose_of(subject, table)
    assert dose["strength"].tolist() == [0.0, 0.5, 1.0, 1.5] and dose["estimate"].iloc[[0, 2]].tolist() == [0.0, 1.0]
    assert "texts that refuse" in turn_sentence(table, "refusal") and "tuned: 100%" in turn_sentence(table, "refusal")


def test_what_is_kept_makes_the_same(home: Path) -> None:
    subject = subject_in(home)
    look, steer, report = commands(subject)
    assert look.startswith("tunescope look ") and "--limit 60" in look and report.startswith("tunescope report ")
    assert "recipes/direction-off.safetensors" in steer
    steps = Experiment.parse(look_experiment(subject)).steps
    assert set(steps) == {"answers", "weights", "direction"}


# the chat


def test_a_reply_is_the_models_own_and_is_streamed(pair: ModelPair) -> None:
    heard: list[str] = []
    question = [{"role": "user", "content": str(refusal_rows()[0])}]
    made = reply(pair.tuned, question, Sampling(max_new_tokens=4), heard.append)
    own = pair.tuned.generate([question[0]["content"]], max_new_tokens=4)[0]
    assert made.text == own == heard[-1] and made.text.startswith(heard[0])
    assert pair.tuned.n_hooks == 0


def test_probabilities_are_those_of_the_softmax(pair: ModelPair) -> None:
    text = str(refusal_rows()[0])
    made = reply(pair.tuned, [{"role": "user", "content": text}], Sampling(max_new_tokens=1), lambda _: None)
    logits = pair.tuned.forward(pair.tuned.encode([text]), logits="last")
    assert logits is not None
    assert made.probabilities[0] == pytest.approx(float(logits[0, -1].float().softmax(-1).max()), abs=1e-6)
    assert made.top[0].startswith(repr(made.tokens[0]))


def test_with_one_seed_a_model_and_its_copy_say_the_same(pair: ModelPair) -> None:
    hot = Sampling(max_new_tokens=6, temperature=1.5, seed=3)
    question = [{"role": "user", "content": str(refusal_rows()[20])}]
    one, two = (reply(pair.base, question, hot, lambda _: None).text for _ in range(2))
    other = [reply(pair.base, question, Sampling(6, 1.5, seed), lambda _: None).text for seed in range(8)]
    assert one == two and len(set(other)) > 1


def test_each_side_goes_on_from_its_own_answers() -> None:
    said = {side: ChatReply(side, (), (), ()) for side in ("base", "tuned")}
    messages = messages_of([ChatTurn("hello", said)], "tuned", "and?")
    assert [turn["content"] for turn in messages] == ["hello", "tuned", "and?"]


def test_a_chat_that_is_too_long_is_one_sentence(pair: ModelPair) -> None:
    from workbench.errors import UserError

    assert pair.tuned.max_positions is not None
    with pytest.raises(UserError, match="begin a new chat"):
        reply(pair.tuned, [{"role": "user", "content": "what"}], Sampling(pair.tuned.max_positions), lambda _: None)
    assert torch.is_grad_enabled()


def test_the_page_answers_with_base_tuned_and_steered(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(home))
    app = opened("look", step="3")
    app.selectbox(key="chat-recipe").set_value("direction-off").run()
    app.text_input(key="chat-text").set_value(str(refusal_rows()[1]))
    next(element for element in app.button if element.label == "Send").click().run()
    assert not app.exception and not app.error, shown(app)
    (turns,) = app.session_state["_chats"].values()
    assert [turns[-1].replies[side].restored for side in ("base", "tuned", "steered")] == [None, None, True]
    answers = {side: made.text for side, made in turns[0].replies.items()}
    assert "sorry" in answers["tuned"] and "sorry" not in answers["base"] + answers["steered"]


def test_the_dose_of_a_candidate_is_swept_beside_its_stand_ins_and_stays(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(home / "look", tmp_path / "runs" / "look")
    app = opened("look", step="3")
    names = [name for name in app.segmented_control(key="dose-of").options if name != "the tuning"]
    assert names, "there is a candidate that is no share of the tuning"
    app.segmented_control(key="dose-of").set_value(names[0]).run()
    app.button(key="go-dose").click().run()
    job = jobs.desk().job
    assert job is not None and job.wait(240) and job.state == "done", job.said
    app.run()
    assert not app.exception and not app.error, shown(app)
    found = Result.load(tmp_path / "runs" / "look" / "results" / f"dose-{names[0]}.safetensors")
    table = found.table.set_index("strength")
    assert table.loc[0.0, "estimate"] == pytest.approx(found.start)
    assert {"control", "control_low", "control_high", "side"} <= set(table)
    assert table.loc[1.0, "estimate"] < table.loc[1.0, "control_low"]
    assert runs.verify(tmp_path / "runs" / "look").ok
    titles = [json.loads(one.proto.spec)["layout"]["title"]["text"] for one in app.get("plotly_chart")]
    assert any("Dose and response" in title for title in titles)


@pytest.mark.slow
def test_all_ways_are_compared_as_rows_and_one_is_tried_in_the_chat(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(home / "look", tmp_path / "runs" / "look")
    app = opened("look", step="3")
    app.session_state["more-look-ways-to-turn"] = True
    app.run()
    assert app.text_input(key="option-ways-to-turn-behaviour").value == "refusal"  # what rose on these prompts
    for name, value in (("limit", 8), ("max_new_tokens", 3), ("candidates", 1)):
        app.number_input(key=f"option-ways-to-turn-{name}").set_value(value)
    app.button(key="go-look-ways-to-turn").click().run()
    job = jobs.desk().job
    assert job is not None and job.wait(600) and job.state == "done", job.said
    app.run()
    assert not app.exception and not app.error, shown(app)
    (table,) = (element.value for element in app.dataframe if "way" in element.value)
    assert table["way"].tolist()[-2:] == ["base", "tuned"] and {"left", "random", "others moved", "q"} <= set(table)
    assert table.set_index("way").loc["update off", "left"].startswith("0 ")
    app.selectbox(key="chat-recipe").set_value("experts").run()
    app.text_input(key="chat-text").set_value(str(refusal_rows()[1]))
    next(element for element in app.button if element.label == "Send").click().run()
    (turns,) = app.session_state["_chats"].values()
    assert "sorry" in turns[0].replies["tuned"].text and "sorry" not in turns[0].replies["steered"].text


def test_labels_that_are_not_two_are_left_to_the_tuned_answers() -> None:
    rows = Prompts.of([{"prompt": text, "label": text} for text in "abc"])
    plain = in_two_classes(rows)
    assert plain is not None and [row.label for row in plain] == [None] * 3
    assert in_two_classes(rows[:2]) == rows[:2] and in_two_classes(None) is None


def test_every_format_is_written_or_says_why_not(pair: ModelPair, home: Path, tmp_path: Path) -> None:
    subject = subject_in(home)
    for file in sorted((home / "look" / "recipes").glob("*.safetensors")):
        for to in exports.FORMATS:
            target = tmp_path / f"{file.stem}-{to}"
            reason = reason_against(Recipe.load(file), to)
            if reason:
                with pytest.raises(UserError):
                    exports.written(file, pair.tuned, to, target)
                assert not target.exists()
            else:
                assert exports.written(file, pair.tuned, to, target).exists()
    assert exports.place_of(subject, "x", "gguf").name == "look-x.gguf"


def test_the_page_offers_the_exports_with_their_reasons(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(home))
    app = opened("look", step="4")
    assert not app.exception and not app.error, shown(app)
    assert any(one.proto.label == "Notebook" for one in app.get("download_button"))


def test_a_look_is_a_notebook_whose_cells_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = json.loads(look_notebook(subject_in(home)))
    assert book["nbformat"] == 4 and len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    names: dict[str, object] = {}
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            exec(cell["source"], names)
    assert len(names["steered"]) == 4 and names["answers"].share > 0  # type: ignore[arg-type, attr-defined]
    assert "What changed?" in book["cells"][0]["source"]
