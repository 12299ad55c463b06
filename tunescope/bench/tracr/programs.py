"""RASP programs, and their compilation into the arrays that ``compiled/`` holds; needs the extra ``tracr`` (JAX).

Run ``python -m tunescope.bench.tracr.programs FOLDER`` to compile them anew. Tracr (Lindner et al. 2023) is Google
DeepMind's, Apache-2.0; the programs use its library of RASP programs. All are compiled with a causal mask, which turns
each into its causal version: at a token, the answer is that for the text up to there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import UserError

MAX_LENGTH = 5
"""Symbols of a text beside the first token."""
LETTERS = ("a", "b", "c", "d")
NUMBERS = (1, 2, 3, 4)


def programs() -> dict[str, tuple[Callable[[Any, Any], Any], tuple[Any, ...]]]:
    """Name -> (function of Tracr's rasp and lib that makes the program, its vocabulary)."""
    return {
        "hist": (lambda _, lib: lib.make_hist(), LETTERS),
        "count": (lambda rasp, lib: lib.make_count(rasp.tokens, "a"), LETTERS),
        "length": (lambda _, lib: lib.make_length(), LETTERS),
        "previous": (lambda rasp, lib: lib.shift_by(1, rasp.tokens), LETTERS),
        "two-back": (lambda rasp, lib: lib.shift_by(2, rasp.tokens), LETTERS),
        "pattern": (lambda rasp, lib: lib.detect_pattern(rasp.tokens, "ab"), LETTERS),
        "reverse": (lambda rasp, lib: lib.make_reverse(rasp.tokens), LETTERS),
        "sort": (lambda rasp, lib: lib.make_sort_unique(rasp.tokens, rasp.tokens), NUMBERS),
        "less-frequent": (lambda _, lib: lib.make_count_less_freq(2), LETTERS),
        "first-repeated": (_first_repeated, LETTERS),
        "same-as-previous": (_same_as_previous, LETTERS),
        "count-two": (_count_two, LETTERS),
        "first-token": (_first_token, LETTERS),
        "induction": (_induction, LETTERS),
    }


def _first_repeated(rasp: Any, lib: Any) -> Any:
    """Whether the token stood in the text before."""
    return rasp.Map(lambda count: count > 1, lib.make_hist()).named("repeated")


def _same_as_previous(rasp: Any, lib: Any) -> Any:
    return rasp.SequenceMap(lambda a, b: a == b, rasp.tokens, lib.shift_by(1, rasp.tokens)).named("same")


def _count_two(rasp: Any, lib: Any) -> Any:
    """How many a, less how many b, where that is positive."""
    a, b = lib.make_count(rasp.tokens, "a"), lib.make_count(rasp.tokens, "b")
    return rasp.SequenceMap(lambda x, y: max(x - y, 0), a, b).named("more")


def _first_token(rasp: Any, lib: Any) -> Any:  # noqa: ARG001 (one signature for all)
    """The first token of the text, in capitals."""
    first = rasp.Select(rasp.indices, rasp.indices, lambda key, _query: key == 0)
    return rasp.Map(lambda token: token.upper(), rasp.Aggregate(first, rasp.tokens)).named("first")


def _induction(rasp: Any, lib: Any) -> Any:
    """What followed the token that stood two before: a previous-token head feeds a head that looks it up."""
    before = lib.shift_by(1, rasp.tokens)
    look = rasp.Select(before, rasp.tokens, rasp.Comparison.EQ)
    return rasp.Aggregate(look, rasp.tokens, default=None).named("induction")


def compiled(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Weights, reference residuals of Tracr's own model, and what they mean, of one program.

    Raises :class:`UserError` where Tracr is not installed.
    """
    try:
        from tracr.compiler import compiling, lib
        from tracr.rasp import rasp
    except ImportError:
        raise UserError(
            "Compiling RASP programs needs Tracr, which is not installed: pip install 'tunescope[tracr]', or use the "
            "compiled programs that are shipped."
        ) from None
    make, vocab = programs()[name]
    program = make(rasp, lib)
    model = compiling.compile_rasp_to_model(
        program, vocab=set(vocab), max_seq_len=MAX_LENGTH, compiler_bos="BOS", causal=True
    )
    weights = {f"{module}|{kind}": np.asarray(value, dtype=np.float32)
               for module, params in model.params.items() for kind, value in params.items()}  # fmt: skip
    texts = _texts(vocab)
    runs = [model.apply(["BOS", *text]) for text in texts]
    weights["reference"] = np.stack([np.asarray(run.residuals, dtype=np.float32)[:, 0] for run in runs])
    config = model.model_config
    said = {
        "program": name,
        "heads": config.num_heads,
        "layers": config.num_layers,
        "key_size": config.key_size,
        "hidden": config.mlp_hidden_size,
        "residual": model.residual_labels,
        "tokens": [
            str(token) for token, _ in sorted(model.input_encoder.encoding_map.items(), key=lambda pair: pair[1])
        ],
        "outputs": [
            str(token) for token, _ in sorted(model.output_encoder.encoding_map.items(), key=lambda pair: pair[1])
        ],
        "output_columns": _output_columns(model, program.label),
        "texts": [[str(token) for token in text] for text in texts],
        "decoded": [[str(token) for token in run.decoded] for run in runs],
        "made_with": "tracr-pypi 1.0.0 (Apache-2.0, Google DeepMind), compile_rasp_to_model, causal=True",
    }
    return weights, said


def _texts(vocab: tuple[Any, ...]) -> list[list[Any]]:
    draw = np.random.default_rng(0)
    return [[vocab[integer] for integer in draw.integers(0, len(vocab), MAX_LENGTH)] for _ in range(6)]


def _output_columns(model: Any, label: str) -> list[int]:
    """Residual column of each output, in the order of the output encoder."""
    places = {name: number for number, name in enumerate(model.residual_labels)}
    ordered = sorted(model.output_encoder.encoding_map.items(), key=lambda pair: pair[1])
    return [places[f"{label}:{value}"] for value, _ in ordered]


def write(folder: Path) -> list[str]:
    """Compile every program into ``folder``; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in programs():
        weights, said = compiled(name)
        np.savez_compressed(folder / f"{name}.npz", **weights)  # type: ignore[arg-type]
        (folder / f"{name}.json").write_text(json.dumps(said, indent=1) + "\n")
    return list(programs())


if __name__ == "__main__":
    sys.stderr.write(" ".join(write(Path(sys.argv[1]))) + "\n")
