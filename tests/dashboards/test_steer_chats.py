"""The page Steer on a model with a chat template: lines are user turns, a run's chats keep their turns, or raw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dashboards import as_experiment
from tests.dashboards.sample_runs import opened, save_pair, shown
from tests.tiny import tiny_model
from tunescope.experiments import Experiment
from workbench import runs
from workbench.models.pair import load_pair
from workbench.prompts import Prompts

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}[assistant] "
CHAT = [
    {"role": "user", "content": "the quick"}, {"role": "assistant", "content": "brown"},
    {"role": "user", "content": "fox\njumps"},
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    pair = save_pair(tmp_path_factory.mktemp("pair"))
    for folder in pair:
        Path(folder, "chat_template.jinja").write_text(TEMPLATE)
    return pair


def test_a_runs_chats_are_shown_and_keep_their_turns(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    with runs.create(tmp_path / "runs", "chats", kind="demo", config={}) as run:
        run.note(pairs={"tiny": {"base": folders[0], "tuned": folders[1], "prompts": "prompts/chats.jsonl"}})
        run.file("prompts").mkdir()
        Prompts.of([{"messages": CHAT}]).save(run.file("prompts/chats.jsonl"))
    app = opened("steer", off="L0E1, L1E3")
    assert app.text_area(key="prompts").value == "fox jumps"
    app.text_area(key="prompts").set_value("fox jumps\nthe lazy dog")
    app.number_input(key="tokens").set_value(4).run()
    app.button(key="go-steer").click().run()
    assert not app.exception and not app.error, shown(app)
    done, result = app.session_state["_kept-steer"]
    pair = load_pair(*folders)
    assert list(result.tuned) == pair.tuned.generate([CHAT, "the lazy dog"], max_new_tokens=4)
    texts = [text for text, _ in result.reads]
    assert texts[0].startswith("[user] the quick [assistant] brown [user] fox\njumps")
    assert texts[1] == "[user] the lazy dog [assistant] "
    ids = [" ".join(map(str, ids)) for _, ids in result.reads]
    assert ids[1] == " ".join(map(str, pair.tuned.encode(["the lazy dog"]).input_ids[0].tolist()))
    assert ids[1] in [element.value for element in app.code]
    space: dict[str, object] = {}
    exec(done.python(), space)
    assert space["texts"] == list(result.steered)
    rows = Experiment.parse(as_experiment.steer_experiment(done)).prompts["prompts"].rows
    assert rows == [{"messages": CHAT}, "the lazy dog"]


def test_texts_of_several_lines_keep_their_breaks(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Question and answer lines, as a model without a chat template reads them."""
    text = "the quick\nbrown:"
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    with runs.create(tmp_path / "runs", "texts", kind="demo", config={}) as run:
        run.note(pairs={"tiny": {"base": folders[0], "tuned": folders[1], "prompts": "prompts/texts.jsonl"}})
        run.file("prompts").mkdir()
        Prompts.of([text], chat=False).save(run.file("prompts/texts.jsonl"))
    app = opened("steer", off="L0E1, L1E3")
    assert app.text_area(key="prompts").value == "the quick brown:"
    app.segmented_control(key="read-as").set_value("raw")
    app.number_input(key="tokens").set_value(4).run()
    app.button(key="go-steer").click().run()
    assert not app.exception and not app.error, shown(app)
    done, result = app.session_state["_kept-steer"]
    assert [read for read, _ in result.reads] == [text]
    space: dict[str, object] = {}
    exec(done.python(), space)
    assert space["texts"] == list(result.steered)
    (row,) = Experiment.parse(as_experiment.steer_experiment(done)).prompts["prompts"].rows
    assert row == {"prompt": text, "chat": False}
    chat = opened("look", step="1")
    assert chat.text_area(key="chat-text").value == text and not chat.exception, shown(chat)


def test_raw_lines_and_a_system_turn(folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    texts = {}
    for name, query in {"raw": {"read-as": "raw"}, "system": {"system": "Be brief."}}.items():
        app = opened("steer", base=folders[0], tuned=folders[1], off="L0E1", **query)
        app.text_area(key="prompts").set_value("the fox")
        app.number_input(key="tokens").set_value(2).run()
        app.button(key="go-steer").click().run()
        assert not app.exception and not app.error, shown(app)
        done, result = app.session_state["_kept-steer"]
        texts[name] = result.reads[0][0]
        json.dumps(done.inputs())
    assert texts == {"raw": "the fox", "system": "[system] Be brief. [user] the fox [assistant] "}


def test_experts_are_asked_for_where_the_pages_own_models_have_them(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of dense models in the home says nothing of the mixture that a link or a person names on the page."""
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    dense = str(tmp_path / "dense")
    tiny_model("llama").save_pretrained(dense)
    with runs.create(tmp_path / "runs", "dense", kind="demo", config={}) as run:
        run.note(pairs={"tiny": {"base": dense, "tuned": dense}})
    named = opened("steer", base=folders[0], tuned=folders[1], off="L0E1")
    assert named.text_input(key="off").value == "L0E1"
    named.text_input(key="base").set_value(dense)
    named.text_input(key="tuned").set_value(dense).run()
    assert "off" not in {box.key for box in named.text_input}
