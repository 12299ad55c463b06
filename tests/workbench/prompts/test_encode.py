"""Token ids: one BOS, one chat template, left padding, batches, first tokens of answers in context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import tokenizer
from workbench.errors import UserError
from workbench.prompts import Prompts
from workbench.prompts.answers import answer_token, answer_tokens
from workbench.prompts.encode import Encoded, batches, encode, pad_left, render

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture
def chat_tokenizer() -> Any:
    copy = tokenizer().__class__(tokenizer_object=tokenizer().backend_tokenizer, **tokenizer().special_tokens_map)
    copy.chat_template = TEMPLATE
    return copy


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def test_plain_text_has_the_tokenizers_own_bos_once() -> None:
    tok = tokenizer()
    plain, pasted = encode(["the fox", "<bos>the fox"], tok)
    assert plain == tok("the fox")["input_ids"] == pasted
    assert plain.count(tok.bos_token_id) == 1


def test_a_batch_of_texts_equals_the_tokenizers_own_call_of_each() -> None:
    tok = tokenizer()
    texts = ["the fox", "a", "jumps over <eos> the\nlazy dog", "ÿ 漢字 🦊", "the fox " * 40]
    tok(texts, padding=True, truncation=True, max_length=3)  # leaves the backend padding and truncating
    assert encode(texts, tok) == [tok(text)["input_ids"] for text in texts]

    class Upper(type(tok)):  # type: ignore[misc]
        def _encode_plus(self, text: Any, **options: Any) -> Any:
            return super()._encode_plus([one.upper() for one in text], **options)

    upper = Upper(tokenizer_object=tok.backend_tokenizer, **tok.special_tokens_map)
    assert encode(["the fox"], upper) == [tok("THE FOX")["input_ids"]]


def test_chat_template_is_applied_once(chat_tokenizer: Any) -> None:
    row = Prompts.of([chat(("user", "the fox"))])[0]
    assert render(row, chat_tokenizer) == "<bos>[user] the fox\n[assistant] "
    (ids,) = encode([chat(("user", "the fox"))], chat_tokenizer)
    assert ids == chat_tokenizer.apply_chat_template(list(row.messages), add_generation_prompt=True)["input_ids"]
    assert ids.count(chat_tokenizer.bos_token_id) == 1


def test_the_assistants_words_are_continued(chat_tokenizer: Any) -> None:
    row = Prompts.of([chat(("user", "the fox"), ("assistant", "It jumps"))])[0]
    assert render(row, chat_tokenizer).endswith("[assistant] It jumps")


def test_errors_name_the_prompt(chat_tokenizer: Any) -> None:
    tok = tokenizer()
    with pytest.raises(UserError, match="Prompt 1: It is chat messages, and this tokenizer has no chat template"):
        encode(["a", chat(("user", "b"))], tok)
    length = len(tok("the fox jumps")["input_ids"])
    assert len(encode(["the fox jumps"], tok, max_length=length)[0]) == length
    with pytest.raises(UserError, match=f"Prompt 1 has {length} tokens and the limit is {length - 1}"):
        encode(["a", "the fox jumps"], tok, max_length=length - 1)
    with pytest.raises(UserError, match="no prompts"):
        encode(Prompts([]), tok)
    chat_tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UserError, match=r"Prompt 0: The chat template refuses .*System role not supported"):
        encode([chat(("system", "be nice"))], chat_tokenizer)


def test_pad_left_puts_every_last_token_in_the_last_column() -> None:
    batch = pad_left([[5, 6, 7], [8]], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch.lengths.tolist() == [3, 1] and len(batch) == 2
    assert isinstance(batch.to("cpu"), Encoded)


@given(
    lengths=st.lists(st.integers(1, 50), max_size=40),
    batch_size=st.integers(1, 9),
    max_tokens=st.none() | st.integers(1, 200),
)
def test_batches_hold_every_row_once_within_the_limits(
    lengths: list[int], batch_size: int, max_tokens: int | None
) -> None:
    made = batches(lengths, batch_size, max_tokens)
    assert sorted(row for batch in made for row in batch) == list(range(len(lengths)))
    assert made == batches(list(lengths), batch_size, max_tokens)
    longest = [max(lengths[row] for row in batch) for batch in made]
    assert longest == sorted(longest, reverse=True)
    for batch, most in zip(made, longest, strict=True):
        assert len(batch) <= batch_size
        assert max_tokens is None or len(batch) == 1 or most * len(batch) <= max_tokens


def test_batches_waste_less_than_file_order() -> None:
    lengths = [int(n) for n in torch.randint(1, 100, (256,))]
    padded = sum(len(b) * max(lengths[r] for r in b) for b in batches(lengths, 16))
    in_order = sum(16 * max(lengths[i : i + 16]) for i in range(0, 256, 16))
    assert padded < 1.1 * sum(lengths) < in_order


def test_answer_token_is_what_continues_the_prompt() -> None:
    tok = tokenizer()
    row = Prompts.of([{"prompt": "the quick brown", "answer": "fox"}])[0]
    ids = tok("the quick brown fox")["input_ids"]
    assert answer_token(row, tok) == ids[len(tok("the quick brown")["input_ids"])]
    assert tok.decode([answer_token(row, tok)]).startswith(" ")
    assert tok.decode([answer_token(row, tok, answer="-")]) == "-"
    bracket = Prompts.of([{"prompt": "the (", "answer": "fox"}])[0]
    assert tok.decode([answer_token(bracket, tok)])[0] == "f"


def test_answer_after_a_prompt_that_ends_with_a_space() -> None:
    tok = tokenizer()
    row = Prompts.of([{"prompt": "the quick brown ", "answer": "fox"}])[0]
    token = answer_token(row, tok)
    assert tok.decode([token])[0] == "f"
    prompt, both = tok("the quick brown ")["input_ids"], tok("the quick brown fox")["input_ids"]
    assert both[: len(prompt)] != prompt  # the joint merges, which is why it needs care


def test_answer_token_of_a_sentencepiece_like_tokenizer(stories: Path) -> None:
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(stories)
    row = Prompts.of([{"prompt": "Once upon a", "answer": "time"}])[0]
    prompt, both = tok("Once upon a")["input_ids"], tok("Once upon a time")["input_ids"]
    assert both[: len(prompt)] == prompt
    assert answer_token(row, tok) == both[len(prompt)]
    spaced = Prompts.of([{"prompt": "Once upon a ", "answer": "time"}])[0]
    assert not tok.convert_ids_to_tokens(answer_token(spaced, tok)).startswith("▁")


def test_chat_answers_follow_the_template_without_a_space(chat_tokenizer: Any) -> None:
    chat_tokenizer.chat_template = TEMPLATE.replace("[assistant] ", "[assistant]\n")
    row = Prompts.of([{"messages": chat(("user", "the fox")), "answer": "jumps"}])[0]
    assert chat_tokenizer.decode([answer_token(row, chat_tokenizer)])[0] == "j"


def test_answers_that_begin_alike_are_refused() -> None:
    tok = tokenizer()
    rows = [
        {"prompt": "the", "answer": "fox", "distractor": "dog"},
        {"prompt": "the", "answer": "qx", "distractor": "qy"},
    ]
    found = answer_tokens(Prompts.of(rows[:1]), tok)
    assert found.distractor is not None and found.answer.tolist() != found.distractor.tolist()
    clash = [{"prompt": "the (", "answer": "zxa", "distractor": "zxb"}]
    with pytest.raises(UserError, match=r"Prompt 1: answer 'zxa' and distractor 'zxb' begin with the same token 'z'"):
        answer_tokens(Prompts.of(rows[:1] + clash), tok)
    assert answer_tokens(Prompts.of([{"prompt": "a", "answer": "b"}]), tok).distractor is None
    with pytest.raises(UserError, match="Prompt 1 has no distractor"):
        answer_tokens(Prompts.of([rows[0], {"prompt": "a", "answer": "b"}]), tok)
    with pytest.raises(UserError, match="Prompt 0 has no answer"):
        answer_tokens(Prompts.of(["a"]), tok)
