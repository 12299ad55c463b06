"""Probes of groups that the bench of planted truth covers, which it does not ask, and why (`tests.declared`)."""

from __future__ import annotations

_SERIES = "reads several fine-tunes, and an organism is one"
_ADAPTER = "reads a kind of adapter that no organism has"
_TRAINS = "trains or fits something of its own, and names no place that was planted"
_SHAPE = "tells of which form an update is, and every organism is tuned without a prescribed one"
_HELD = "its known answer is set by hand in its own tests; no organism plants what it asks about"

NO_BENCH_CASE = {
    name: reason
    for reason, names in {
        _SERIES: (
            "ability-collisions", "adapter-bank", "composition", "context-updates", "factor-averages",
            "learned-scaling", "lora-chain", "lora-likeness", "mask-churn", "merge-synergy", "merges", "online-offline",
            "series-curve", "series-profile", "shared-part", "twin-merging", "adapter-reconstruction",
        ),
        _ADAPTER: (
            "adapter-panel", "decomposed-prompt", "lora-blocks", "prefix-gates", "random-bases", "virtual-tokens",
        ),
        _TRAINS: (
            "crosscoder", "difference-sae", "tuning-transcoder", "edit-sites", "gate", "selections", "tuning-trial",
        ),
        _SHAPE: ("anatomy", "change-forms", "input-side", "input-spans", "rank-map", "scale-sweep", "update-parts"),
        _HELD: (
            "block-flips", "direction", "domain-experts", "edges", "expert-sets", "layer-paths", "mlps",
            "probability-movement", "same-heads", "sparsity-curve",
        ),
    }.items()
    for name in names
}  # fmt: skip
"""Registered probe -> the reason."""
