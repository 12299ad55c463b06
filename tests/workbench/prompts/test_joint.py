"""The joint of prompt and answer is what the prompt's own examples and the tokenizer show."""

from __future__ import annotations

import pytest

from tests.tiny import tokenizer
from workbench.prompts.joint import joint_of

SHOTS = [("hot", "cold"), ("up", "down"), ("left", "right")]


@pytest.mark.parametrize(
    "sign", [":", " ->", " =", " \u2192", " is", " -", " =>", "...", " |", " \u2014", " *", " /", ">"]
)
@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_the_examples_of_the_prompt_decide(sign: str, blank: str) -> None:
    if not blank and sign[-1].isalpha():
        pytest.skip("a word needs its blank")
    shots = "".join(f"{one}{sign}{blank}{other}\n" for one, other in SHOTS)
    assert joint_of(f"{shots}big{sign}", "small", tokenizer()) == blank


@pytest.mark.parametrize(
    ("text", "answer", "joint"),
    [
        ("17 + 28 =", "45", " "),
        ("17+28=", "45", ""),
        ("x=", "3", ""),
        ("Answer:", "42", " "),
        ("Translate into Chinese: hello ->", "\u4f60\u597d", ""),
        ("The capital of France is", "Paris", " "),
        ("What is the capital of France?", "Paris", " "),
        ("Q: Who wrote Hamlet? A:", "Shakespeare", " "),
        ('He said "', "yes", ""),
        ('hot "cold" up "down" big "', "small", ""),
        ("He gave (", "me", ""),
        ("\u6cd5\u56fd\u7684\u9996\u90fd\u662f", "\u5df4\u9ece", ""),
        ("The capital is ", "Paris", ""),
        ("It's", "raining", " "),
        ("She didn'", "t", ""),
        ("She didn\u2019", "t", ""),
        ("a well-", "known", ""),
        ("the name snake_", "case", ""),
        ("The temperature is -", "5", ""),
        ("7 -", "5", " "),
        ("I paid $", "20", ""),
        ("I paid \u20ac", "20", ""),
        ("/home/", "user", ""),
        ("The capital is", " Paris", ""),
        ("Answer: **", "Paris", ""),
        ("Answer: ``", "code", ""),
        ("**Question** one **", "Paris", ""),
        ("**Answer:**", "Paris", " "),
        ("\u00bf", "Qu\u00e9", ""),
        ("Write to ann@", "mail.com", ""),
        ("See https://", "example.com", ""),
        ("Yes or no: yes/", "no", ""),
        ("On C:\\", "Users", ""),
        ("under the hash #", "tag", ""),
        ("It is item #", "5", ""),
        ("Title\n#", "Contents", " "),
        ('He said "yes', '"', ""),
        ('He said "yes" and', '"no', " "),
        ("-", "5", ""),
        ("- one\n-", "two", " "),
    ],
)
def test_without_examples_the_prompt_and_the_tokenizer_decide(text: str, answer: str, joint: str) -> None:
    assert joint_of(text, answer, tokenizer()) == joint
