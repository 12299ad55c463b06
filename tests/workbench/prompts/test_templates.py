"""Plain texts as user turns, system turns, raw texts, and templates that refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts import Prompts
from workbench.prompts.answers import continuation_ids
from workbench.prompts.encode import encode, render

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
WITHOUT_SYSTEM = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
BROKEN = "{{ messages[0]['content'] + 1 }}"


def with_template(template: str | None = TEMPLATE) -> Any:
    copy = tokenizer().__class__(tokenizer_object=tokenizer().backend_tokenizer, **tokenizer().special_tokens_map)
    copy.chat_template = template
    return copy


def test_a_plain_text_is_a_user_turn_where_there_is_a_template() -> None:
    tok, turn = with_template(), [{"role": "user", "content": "the fox"}]
    assert render(Prompts.of("the fox")[0], tok) == "<bos>[user] the fox\n[assistant] "
    assert encode(["the fox"], tok) == encode([turn], tok)
    assert encode(["the fox"], tokenizer()) == [tokenizer()("the fox")["input_ids"]]


def test_a_raw_text_is_read_as_it_is_and_says_so_in_its_row(tmp_path: Path) -> None:
    tok = with_template()
    raw = Prompts.of(["the fox"], chat=False)
    assert encode(raw, tok) == [tok("the fox")["input_ids"]]
    assert raw.hash != Prompts.of(["the fox"]).hash
    again = Prompts.load(raw.save(tmp_path / "raw.jsonl"))
    assert again == raw and again[0].as_dict() == {"prompt": "the fox", "chat": False}


def test_text_from_a_rendered_chat_is_not_wrapped_again() -> None:
    tok = with_template()
    assert render(Prompts.of("<bos>[user] the fox\n[assistant] ")[0], tok) == "<bos>[user] the fox\n[assistant] "


def test_token_ids_are_read_as_they_are() -> None:
    assert encode([[5, 6, 7]], with_template()) == [[5, 6, 7]]
    assert encode(Prompts.of([[5, 6, 7]], system="Be brief."), with_template()) == [[5, 6, 7]]


def test_a_system_turn_goes_before_texts_and_chats_that_have_none() -> None:
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "b"}]
    rows = Prompts.of(["a", [{"role": "user", "content": "b"}], own], system="Be brief.")
    said = [[turn["content"] for turn in row.messages or ()] for row in rows]
    assert said == [["Be brief.", "a"], ["Be brief.", "b"], ["own", "b"]]
    assert [row.shown for row in rows] == ["a", "b", "b"]


def test_a_contrast_follows_its_prompt() -> None:
    tok = with_template()
    row = {"prompt": "the fox", "contrast": "the dog"}
    raw, system = Prompts.of([row], chat=False), Prompts.of([row], system="s")
    assert encode(raw.contrasts, tok) == [tok("the dog")["input_ids"]]
    assert [turn["content"] for turn in system.contrasts[0].messages or ()] == ["s", "the dog"]
    assert encode(Prompts.of([row]).contrasts, tok) == encode([[{"role": "user", "content": "the dog"}]], tok)


def test_an_answer_follows_the_opening_of_the_assistants_turn() -> None:
    tok = with_template()
    row = Prompts.of([{"prompt": "the fox", "answer": "jumps"}])[0]
    text = "<bos>[user] the fox\n[assistant] "
    whole = tok(text + "jumps", add_special_tokens=False)["input_ids"]
    prompt = tok(text, add_special_tokens=False)["input_ids"]
    expected = whole[len(prompt) :] if whole[: len(prompt)] == prompt else None
    found = continuation_ids(row, tok)
    assert tok.decode(found).strip() == "jumps" and (expected is None or found == expected)


def test_what_is_shown_of_a_chat_is_what_the_user_says_last() -> None:
    turns = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    chat = [{"role": role, "content": content} for role, content in turns]
    parts = [{"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image"}]}]
    assert [row.shown for row in Prompts.of([chat, parts, "plain"])] == ["three", "look <image>", "plain"]


ITEMS = "{% for m in messages %}{% for part in m['content'] %}<{{ part['text'] }}>{% endfor %}{% endfor %}"
ADDED = "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "read"),
    [(TEMPLATE, "<bos>[user] look\nhere\n[assistant] "), (ADDED, "[user] look\nhere"), (ITEMS, "<look><here>")],
)
def test_a_turn_of_parts_is_read_as_its_text_whatever_the_template_knows(template: str, read: str) -> None:
    parts = [{"type": "text", "text": "look"}, {"type": "text", "text": "here"}]
    row = Prompts.of([[{"role": "user", "content": parts}]])[0]
    assert render(row, with_template(template)) == read


def test_parts_that_are_no_text_are_not_written_out() -> None:
    parts = [{"type": "text", "text": "look"}, {"type": "image", "url": "x.png"}]
    with pytest.raises(UserError, match="parts that are no text"):
        render(Prompts.of([[{"role": "user", "content": parts}]])[0], with_template())


@pytest.mark.parametrize("content", [None, 5, True, {"text": "x"}])
def test_content_that_is_no_text_is_refused(content: Any) -> None:
    with pytest.raises(UserError, match="content of message 0 is"):
        Prompts.of([[{"role": "user", "content": content}]])


def test_a_call_of_a_tool_needs_no_content() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert len(Prompts.of([[{"role": "user", "content": "x"}, call, {"role": "tool", "content": "5"}]])) == 1


def test_what_the_model_reads_can_be_looked_at() -> None:
    model = AdaptedModel(tiny_model("llama"), with_template())
    found = model.reads(["the fox", [{"role": "user", "content": "a dog"}]])
    assert list(found["text"]) == ["<bos>[user] the fox\n[assistant] ", "<bos>[user] a dog\n[assistant] "]
    assert found["input_ids"][0] == model.encode(["the fox"]).input_ids[0].tolist()


@pytest.mark.parametrize(
    ("template", "options", "said"),
    [
        (None, {"chat": True}, r"Prompt 0: It is to be a user turn \(chat=True\), and this tokenizer has no chat"),
        (None, {"system": "s"}, "Prompt 0: It is chat messages, and this tokenizer has no chat template"),
        (WITHOUT_SYSTEM, {"system": "Be brief."}, "Prompt 0: The chat template leaves the system turn out"),
        (REFUSES_SYSTEM, {"system": "Be brief."}, "Prompt 0: The chat template refuses its messages: no system turn"),
        (BROKEN, {}, "Prompt 0: The chat template refuses its messages"),
    ],
)
def test_bad_templates_and_rows_are_one_sentence(template: str | None, options: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        encode(Prompts.of(["the fox"], **options), with_template(template))


def test_a_system_turn_cannot_be_raw() -> None:
    with pytest.raises(UserError, match=r"chat=False \(--raw\)"):
        Prompts.of(["a"], chat=False, system="s")
