"""Which experts serve which domain: use of every expert by the prompts of every label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.experts.counting import content, count_experts, require_experts, special_ids
from probes.resampling import permutation_p, shuffled_labels, units_of
from probes.results import ProbeResult, Provenance
from probes.scored import scored
from workbench.argument_checks import check_subject
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.stats.fdr import q_values
from workbench.typing import Float

SHUFFLES = 999


@dataclass(frozen=True, kw_only=True)
class DomainExperts(ProbeResult):
    """How specialised each expert is.

    ``table``: layer, expert, domain; ``score``, the share of the domain's tokens that select the expert, with interval;
    ``control``, that share over all other domains; ``q`` of the difference (labels exchanged between prompts).
    ``specialised``: layer, bits: how much knowing a token's expert says about its prompt's domain (mutual information),
    ``control``: the same with exchanged labels.
    """

    specialised: pd.DataFrame
    domains: list[str]
    resampled: str = "prompts"

    title: ClassVar[str] = "Experts and domains"
    unit: ClassVar[str] = "share of the domain's tokens"

    def experts_of(self, domain: str, first: int = 8) -> list[str]:
        """The experts that a domain uses most beyond the others, as labels for ``ExpertSwitch``.

        Raises:
            UserError: No prompt was of that domain.
        """
        own = self.table[self.table["domain"] == domain]
        if not len(own):
            raise UserError(f"No prompt is labelled {domain!r}; {', '.join(self.domains)} are the domains.")
        beyond = (own["score"] - own["control"]).sort_values(ascending=False, kind="stable")
        return [f"L{own.loc[row, 'layer']}E{own.loc[row, 'expert']}" for row in beyond.index[:first]]

    def figure(self) -> go.Figure:
        """Use beyond other domains, expert by domain."""
        beyond = self.table.assign(beyond=self.table["score"] - self.table["control"])
        grid = beyond.pivot_table(index=["layer", "expert"], columns="domain", values="beyond")
        names = [f"L{layer}E{expert}" for layer, expert in grid.index]
        drawn = go.Figure(go.Heatmap(z=grid.to_numpy(), x=list(grid), y=names, colorscale="RdBu", zmid=0))
        drawn.update_layout(title=self.title, xaxis_title="domain")
        return drawn

    def summary(self) -> str:
        """Experts beyond chance and the most specialised layer."""
        significant = self.table[(self.table["q"] < 0.05) & (self.table["score"] > self.table["control"])]
        top = self.specialised.iloc[int(self.specialised["bits"].to_numpy().argmax())]
        best = significant.sort_values("score", ascending=False).head(3)
        said = ", ".join(
            f"L{row.layer}E{row.expert} for {row.domain} {row.score:.0%} [{row.low:.0%}, {row.high:.0%}] "
            f"(others {row.control:.0%})"
            for row in best.itertuples()
        )
        return (
            f"{len(significant)} experts are used more in one domain beyond chance{': ' + said if said else ''}; layer "
            f"{int(top['layer'])} tells domains apart best ({top['bits']:.3f} bits, exchanged labels "
            f"{top['control']:.3f}); intervals over {self.resampled}; control: {self.control}"
        )


@method(
    "domain-experts",
    group="experts",
    question="Which experts serve which domain of prompts?",
    papers=("Contrastive Learning and Mixture of Experts Enables Precise Vector Embeddings",),
    needs=Needs(columns=("label",), experts=True),
    cost="one pass per batch",
    example="--batch-size 8",
    any_adapter="which experts a class of prompts goes to, whatever made it so",
)
def domain_experts(
    subject: Any,
    prompts: Prompts | Sequence[object],
    *,
    exclude: Literal["none", "special", "template"] = "special",
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> DomainExperts:
    """Count which experts the tokens of each domain select, and test each against the other domains.

    Where routing is enforced (a domain's tokens go to a given expert), the map shows just that; see the test.

    Args:
        subject: A model, or a pair (its tuned model).
        prompts: Prompts whose label is their domain.
        exclude: Tokens that do not count: none, special ones, or also what all prompts share at both ends (template).
        seed: Of resampling and exchanged labels.

    Returns:
        A :class:`DomainExperts`; ``.experts_of(domain)`` gives labels for ``iv.ExpertSwitch``.

    Raises:
        UserError: A dense model, rows without labels, or fewer than two domains.
    """
    check_subject(subject, prompts)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    require_experts(model)
    rows = Prompts.of(prompts)
    labels = np.array([str(row.label) for row in rows])
    if any(row.label is None for row in rows) or len(set(labels)) < 2:
        raise UserError("Prompts are labelled by their domain, and there are two domains or more: give labels.")
    ids = encode(rows, model.tokenizer, model.max_positions)
    masks = content(ids, exclude, special_ids(model.tokenizer))
    (counts,) = count_experts(model, ids, [masks], batch_size=batch_size, progress=progress)
    domains = sorted(set(labels))
    numbers = np.array([domains.index(label) for label in labels])
    return DomainExperts(
        table=_table(counts.shares, counts.layers, numbers, domains, rows, seed),
        control="the same expert's use by all other domains",
        provenance=Provenance.of("domain_experts", model, rows, seed=seed, forward_passes=counts.passes),
        specialised=_specialised(counts.counts, counts.layers, numbers, rows, seed),
        domains=domains, resampled=units_of(rows.clusters),
    )  # fmt: skip


def _table(
    shares: Float[np.ndarray, "prompt layer expert"], layers: Sequence[int], numbers: np.ndarray, domains: list[str],
    rows: Prompts, seed: int,
) -> pd.DataFrame:  # fmt: skip
    flat = shares.reshape(len(shares), -1)
    drawn = shuffled_labels(numbers, SHUFFLES, seed, rows.clusters)
    lines, p = [], []
    for place, domain in enumerate(domains):
        own = numbers == place
        beyond = flat[own].mean(0) - flat[~own].mean(0)
        null = np.stack([flat[draw == place].mean(0) - flat[draw != place].mean(0) for draw in drawn])
        p.append(permutation_p(beyond, null))
        for cell in range(flat.shape[1]):
            layer, expert = divmod(cell, shares.shape[2])
            score = scored(flat[own, cell], seed=seed, clusters=rows.clusters[own])
            lines.append({"layer": layers[layer], "expert": expert, "domain": domain, **score,
                          "control": flat[~own, cell].mean()})  # fmt: skip
    joined = np.concatenate(p)
    return pd.DataFrame(lines).assign(p=joined, q=q_values(joined))


def _specialised(
    counts: Float[np.ndarray, "prompt layer expert"],
    layers: Sequence[int],
    numbers: np.ndarray,
    rows: Prompts,
    seed: int,
) -> pd.DataFrame:
    drawn = shuffled_labels(numbers, 99, seed, rows.clusters)
    return pd.DataFrame([
        {"layer": layer, "bits": _bits(counts[:, place], numbers),
         "control": float(np.mean([_bits(counts[:, place], draw) for draw in drawn]))}
        for place, layer in enumerate(layers)
    ])  # fmt: skip


def _bits(counts: Float[np.ndarray, "prompt expert"], numbers: np.ndarray) -> float:
    """Mutual information of expert and domain in bits, domains weighed alike."""
    by_domain = np.stack([counts[numbers == value].sum(0) for value in np.unique(numbers)])
    joint = by_domain / np.maximum(by_domain.sum(1, keepdims=True), 1e-12) / len(by_domain)
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(joint > 0, joint * np.log2(joint / outer), 0.0)
    return float(terms.sum())
