"""Models of images or sound: their language model is compared, the other stack is a group of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import interventions as iv
import probes
import workbench as wb
from tests.tiny import VOCAB, randomize, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.randint(10, 290, (2, 12), generator=torch.Generator().manual_seed(3))
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 64,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
}  # fmt: skip
TURNED = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}}
IMAGES = {"patch_size": 14, "hidden_size": 32, "intermediate_size": 64}
CLIP = {**IMAGES, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28}
SOUND = {"num_mel_bins": 16, "max_source_positions": 20}
CONFIGS: dict[str, dict[str, Any]] = {
    "llava": {
        "text_config": {**TEXT, "model_type": "llama"}, "vision_config": {**CLIP, "model_type": "clip_vision_model"},
        "image_token_index": 9,
    },
    "qwen2_5_vl": {
        "text_config": {**TEXT, **TURNED},
        "vision_config": {**IMAGES, "depth": 3, "out_hidden_size": 64, "num_heads": 2, "fullatt_block_indexes": [1]},
    },
    "qwen2_audio": {
        "text_config": {**TEXT, "model_type": "qwen2"},
        "audio_config": {
            **SOUND, "d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
        },
        "audio_token_index": 9,
    },
}  # fmt: skip


def matrix_of(model: Any, *words: str) -> tuple[str, torch.Tensor]:
    """The first matrix of layer 1 whose name holds one of ``words``."""
    return next(
        (name, weight)
        for name, weight in model.named_parameters()
        if ".1." in name and weight.ndim == 2 and any(word in name for word in words)
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_language_model_is_compared_and_the_other_stack_kept_apart(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    hf = tf.AutoModelForMultimodalLM.from_config(tf.AutoConfig.for_model(kind, **CONFIGS[kind])).eval()
    randomize(hf, 0)
    hf.save_pretrained(tmp_path / "base")
    sizes = {}
    with torch.no_grad():
        for stack, words in (("language", ("language_model",)), ("other", ("vision", "visual", "audio"))):
            weight = matrix_of(hf, *words)[1]
            step = torch.randn(weight.shape) * 0.1
            weight.add_(step)
            sizes[stack] = float(step.norm())
        wanted = hf(input_ids=IDS).logits
    hf.save_pretrained(tmp_path / "tuned")
    for folder in ("base", "tuned"):
        tokenizer().save_pretrained(tmp_path / folder)
    pair = wb.load_pair(tmp_path / "base", tmp_path / "tuned", device="cpu")
    torch.testing.assert_close(pair.tuned.forward(IDS), wanted, rtol=1e-4, atol=1e-4)
    for found in (probes.weight_delta(pair), probes.weight_delta(str(tmp_path / "base"), str(tmp_path / "tuned"))):
        table = found.table[found.table["frobenius"] > 1e-4].set_index("stack")
        own = table.loc[["language"]]
        assert own["frobenius"].tolist() == pytest.approx([sizes["language"]], rel=1e-3) and own["layer"].item() == 1
        assert table.drop(index="language")["frobenius"].tolist() == pytest.approx([sizes["other"]], rel=1e-3)
    layer = next(
        module
        for name, module in pair.tuned.hf.named_modules()
        if name.endswith("layers.1") and "language_model" in name
    )
    vector = torch.randn(64)
    hook = layer.register_forward_hook(
        lambda _module, _args, out: (out[0] + vector, *out[1:]) if isinstance(out, tuple) else out + vector
    )
    with torch.no_grad():
        by_hand = pair.tuned.hf(input_ids=IDS).logits
    hook.remove()
    with iv.Recipe([iv.Offset(1, vector)]).applied(pair.tuned):
        torch.testing.assert_close(pair.tuned.forward(IDS), by_hand, rtol=1e-3, atol=1e-3)
