"""The survey of families: its verdicts on a sample, and on every causal language model of transformers."""

from __future__ import annotations

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.families import examine, markdown, summary, survey

_SAMPLE = {"llama": "resolves", "gpt2": "resolves", "granitemoe": "partly", "bert": "refused", "bart": "refused"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", _SAMPLE)
def test_the_sample_gets_its_verdict(kind: str) -> None:
    row = examine(kind)
    assert row.verdict == _SAMPLE[kind], row
    assert row.verdict != "refused" or row.detail.endswith(".")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_family_gets_a_verdict_and_none_crashes() -> None:
    rows = survey()
    assert {row.model_type for row in rows} == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert sum(row.verdict in ("resolves", "partly") for row in rows) > len(rows) // 2, summary(rows)
    assert all(f"| {row.model_type} |" in markdown(rows) for row in rows)
