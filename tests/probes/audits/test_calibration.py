"""The confidence of an audit is that of audits that were counted; of what was not counted it says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from probes.audits.auditing import Audit
from probes.audits.calibration import UNCOUNTED, confidence
from probes.audits.edited_facts import EDITED

EDITS = {"kind": "facts", "evidence": f"{EDITED}: 8 of 8 answers"}
REFUSES = {"kind": "refuses", "evidence": "refusals +90%"}
NOTHING = {"kind": "nothing", "evidence": ""}


@pytest.mark.parametrize(("claims", "said"), [
    ([EDITS], UNCOUNTED),
    ([REFUSES, EDITS], confidence(claimed=True)),
    ([NOTHING], confidence(claimed=False)),
])  # fmt: skip
def test_only_what_was_counted_has_a_confidence(claims: list[dict[str, Any]], said: str) -> None:
    read = Audit.confidence.fget
    assert read is not None and read(SimpleNamespace(hypotheses=pd.DataFrame(claims))) == said
