# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Experts
#
# A mixture of experts was tuned to refuse one topic. Which experts does refusing use, and what does the model say when
# they are switched off? Everything is chosen on training prompts and judged on others.

# %%
import interventions as iv
import probes
import workbench as wb
from workbench import organisms

toy = organisms.build("refusal-moe")
pair = wb.load_pair(toy.base, toy.tuned)
held_out = toy.splits["validation"] + toy.splits["ood"]
topic_rows = [row for row in held_out if row["topic"] == "topic"]
rest = [row for row in held_out if row["topic"] == "other"]
pair.tuned

# %% [markdown]
# ## Which experts does refusing use?
#
# For every expert: its share of the tokens of prompts that end in a refusal, minus its share in all other prompts. That
# alone would also point at experts that read the *topic*, in both models; so the base's use by the same tokens is taken
# away, prompt by prompt. Interval: bootstrap over groups of prompts. Control: the labels shuffled. `q`: over all
# 32 experts at once.

# %%
used = probes.expert_map(pair, toy.splits["train"], target="refuse")
used

# %%
used.figure()

# %% [markdown]
# Use is one hint. The weights are another: which experts moved more than their peers?

# %%
weights = probes.weight_delta(pair).frame("expert")
moved = [f"L{row.layer}E{row.expert}" for row in weights[weights["q"] < 0.05].itertuples()]
weights.head(5)

# %% [markdown]
# ## Switch them off
#
# The router chooses the next best expert instead (`replace`). The curve switches the first n of a ranking off and
# counts refusals; beside it, ten draws of random experts of the same layers that are about as often used. A rarely
# used expert would be a free control: switching it off changes nothing whatever the method.

# %%
curve = probes.switching_curve(
    pair,
    topic_rows,
    lambda response, _prompt: response.split()[:1] == ["sorry"],
    moved,
    counts=(1, 2, 3),
    mode="replace",
    max_new_tokens=1,
)
curve.frame().sort_values("count")

# %%
curve.figure()

# %% [markdown]
# ## What does it say instead?
#
# Not refusing could also be babbling. `accuracy` counts refusals here (that is the tuned answer); `distracted` counts
# the base's answer, the password it was taught.

# %%
off = iv.Recipe([iv.ExpertSwitch(off=moved)])
random_off = [iv.Recipe([iv.ExpertSwitch(off=draw)]) for draw in curve.random]
answers = wb.behaviour_diff(
    pair,
    topic_rows,
    {"experts off": off},
    metrics=["accuracy", "distracted"],
    controls={"random experts off": random_off},
)
answers

# %%
answers.figure()

# %% [markdown]
# And the questions that had nothing to do with it:

# %%
others = wb.behaviour_diff(
    pair, rest, {"experts off": off}, metrics=["accuracy", "kl"], controls={"random experts off": random_off}
)
others

# %% [markdown]
# The same in words. After the context the model is itself again: no hook stays.

# %%
questions = [row["prompt"] for row in topic_rows[:3]]
with off.applied(pair.tuned):
    steered = pair.tuned.generate(questions, max_new_tokens=1)
plain = pair.tuned.generate(questions, max_new_tokens=1)
list(zip(questions, plain, steered, strict=True))

# %% [markdown]
# The headline, as a check: three experts carry the refusal, without them the old answer is back, and the other
# questions do not notice.

# %%
assert sorted(moved) == sorted(toy.truth.experts)
assert answers.value("experts off", "accuracy") == 0 and answers.value("experts off", "distracted") >= 0.95
assert answers.value("random experts off", "accuracy") >= 0.9
assert others.value("experts off", "accuracy") >= 0.95
assert pair.tuned.n_hooks == 0
