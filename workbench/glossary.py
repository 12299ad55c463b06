"""One glossary: what the terms and columns mean, for report, app and ``tunescope terms``."""

from __future__ import annotations

from collections.abc import Iterable

TERMS = {
    "KL": "how far one model's next-token distribution is from the other's, in nats; 0: the same",
    "95 % interval": "where the number would lie, were other prompts of the same kind drawn",
    "resid_post": "the residual stream after a layer: everything that later layers read",
    "attn_out": "what the attention of a layer adds to the residual stream",
    "mlp_out": "what the MLP of a layer adds to the residual stream",
    "z": "what a head's attention has gathered, before the output matrix",
    "write": "what a head adds to the residual stream: its z through the output matrix",
    "patching": "a part of one model's activations put into the other; its effect on the answer is the score",
    "attribution": "patching estimated by gradients: one pass for all heads",
    "random stand-ins": "recipes of the same kind, place and size with random directions or other heads",
    "recipe": "a set of interventions that is applied to a model and taken off again",
    "adapter scale": "how much of an adapter's change is added: 0 is the base, 1 as trained",
    "direction": "a line in the residual stream; its coordinate is turned up, down or set",
    "perplexity": "how surprised a model is by a text, per token; lower is less",
    "others changed": "share of the prompts without the behaviour that are answered otherwise than by the tuned model",
}
"""Term -> its meaning, in a few words."""

COLUMNS = {
    "kl": "KL per token of the tuned answer: how far tuned is from base, in nats; 0: the same",
    "base": "the base model, before tuning",
    "tuned": "the fine-tuned model",
    "steered": "the model with the recipe applied",
    "score": "the probe's score; the text above the table names its unit",
    "low": "lower end of the 95 % interval",
    "high": "upper end of the 95 % interval",
    "control": "the same measurement with random directions, heads, experts or weights of the same number and size",
    "q": "false-discovery rate: of the cells with q this small, about this share is there by chance",
    "p": "p-value of the test against the control",
    "n": "how many prompts the number rests on (of a table of weights: how many weights)",
    "effective_rank": "in how many directions the change spreads: exp of the entropy of its squared singular values",
    "draws": "how many random draws the control is the mean of",
    "change": "difference from the tuned model, paired by prompt",
    "layer": "index of the layer, from 0",
    "head": "index of the attention (query) head in its layer, from 0",
    "expert": "index of the expert in its layer, from 0",
    "module": "part of the layer",
    "position": "index of the token; negative ones count back from the last prompt token",
    "count": "how many were switched or patched together, best first",
    "metric": "accuracy, distracted: shares of prompts; prob: probability of the answer; kl: nats; logit_diff: logits",
    "effect": "signed change of the metric, before it is put on the scale from target (0) to source (1)",
    "restored": "0 = as corrupted, 1 = as clean, whichever way was patched",
    "by z": "the score when only what the head was handed is patched (its z), with the target's own weights after it",
    "own": "score minus by z: what the source's own weights do in this head",
    "in base": "the same in the base model",
    "gain": "tuned minus base",
    "exact": "yes: measured by patching; no: estimated by gradients",
    "means": "the same with the difference of means in place of the trained direction",
    "patched": "the same with the whole residual stream swapped: the most that any subspace can do",
    "cosine": "cosine between two directions; 1 or -1: the same line, 0: at right angles",
    "precision": "share of the named cells that were planted",
    "chance": "the same for cells named at random",
    "planted": "what the organism's own file says was planted",
    "found": "what the probe named",
    "relative": "root mean square change over the base's root mean square",
    "mean_shift": "norm of the mean difference tuned - base",
    "frequency": "share of all counted tokens that select the expert",
    "sparsity": "share of the eligible weights in the graft",
    "entries": "how many weights",
    "ece": "expected calibration error",
    "agreement": "share of prompts with the tuned model's answer",
    "loss": "cross-entropy in nats",
    "label": "the class of the prompt, as its file says",
    "changed": "whether the tuned model answers otherwise than the base",
    "parts at": "the first token that differs, counted from 0",
    "share": "share of the prompts that show the behaviour",
    "random": "the same with random stand-ins: recipes of the same kind and size",
    "others changed": "share of the prompts without the behaviour that are answered otherwise than by the tuned model",
    "others_changed": "share of the prompts without the behaviour that are answered otherwise than by the tuned model",
    "perplexity": "how surprised the model is by the text of the other prompts, per token; lower is less",
    "candidate": "a way to turn the behaviour",
    "way": "a way to turn the behaviour off; base and tuned are the models as they are",
    "what": "what it acts on",
    "left": "how much of the behaviour is left (share of answers that show it, or its score)",
    "others moved": "KL from the tuned model on prompts without the behaviour, in nats per token; 0: nothing moved",
    "search passes": "forward passes that finding it took",
    "slowdown": "time of an answer against the tuned model's",
}
"""Column -> its meaning, in a few words."""


def meanings(columns: Iterable[str]) -> dict[str, str]:
    """The known ones of ``columns``, in their order."""
    return {name: COLUMNS[name] for name in columns if name in COLUMNS}
