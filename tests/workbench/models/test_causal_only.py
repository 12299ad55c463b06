"""Models that predict no next token are refused at load, in one sentence that says what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers as tf

import workbench as wb
from tests.tiny import tiny_model, tokenizer
from workbench.errors import NotSupported

_SIZES: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                          "intermediate_size": 32}  # fmt: skip
_T5 = tf.T5Config(vocab_size=300, d_model=32, d_kv=16, d_ff=32, num_layers=2, num_heads=2)


def _models() -> dict[str, tuple[Any, str]]:
    llama = tiny_model("llama").config
    return {
        "encoder": (tf.BertForMaskedLM(tf.BertConfig(**_SIZES)), "is an encoder, which sees later tokens"),
        "bare encoder": (tf.BertModel(tf.BertConfig(**_SIZES)), "is an encoder, which sees later tokens"),
        "encoder-decoder": (tf.T5ForConditionalGeneration(_T5), "is an encoder-decoder"),
        "reward": (tf.LlamaForSequenceClassification(llama), "a classification or reward head"),
    }


@pytest.mark.parametrize("kind", ["encoder", "bare encoder", "encoder-decoder", "reward"])
@pytest.mark.parametrize("loaded", [False, True])
def test_it_says_what_the_model_is(kind: str, loaded: bool, tmp_path: Path) -> None:
    hf, says = _models()[kind]
    hf.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    given = hf if loaded else str(tmp_path)
    with pytest.raises(NotSupported, match=says):
        wb.load_pair(given, given)
