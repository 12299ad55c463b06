"""What one model's weights make of another run's residual stream."""

from __future__ import annotations

from collections.abc import Sequence

from probes.patches.runs import Values, record
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import Encoded


def record_on_inputs(
    model: AdaptedModel, batch: Encoded, sites: Sequence[Site], inputs: Values
) -> tuple[Values, float]:
    """What every layer of ``model`` computes when it reads another run's residual stream, and the passes spent.

    ``inputs``: that run's values at the sites to replace: resid_pre, and resid_mid where the model has it. resid_mid is
    put in where the attention's output is added, which then says what leads to it: attn_out is read in a pass without.
    """

    def put(site: Site) -> SiteHook:
        return SiteHook(site, lambda value, _ctx: inputs[site].to(value), edit=True)

    middle = any(site.kind == "resid_mid" for site in inputs)
    attention = [site for site in sites if middle and site.kind == "attn_out"]
    rest = [site for site in sites if site not in attention]
    values: Values = {}
    if attention:
        values, _ = record(model, batch, attention, [put(site) for site in inputs if site.kind == "resid_pre"])
    if rest:
        values |= record(model, batch, rest, [put(site) for site in inputs])[0]
    return values, float(bool(attention) + bool(rest))


def stream_sites(model: AdaptedModel, *, middle: bool) -> list[Site]:
    """The inputs of every attention (resid_pre) and, with ``middle``, of every MLP (resid_mid)."""
    sites = [Site("resid_pre", layer) for layer in range(model.n_layers)]
    if middle and model.hub.family.resid_mid is not None:
        sites += [Site("resid_mid", layer) for layer in range(model.n_layers)]
    return sites
