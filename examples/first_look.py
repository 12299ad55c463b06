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
# # First look at a pair
#
# You have a base model and its fine-tuned version. Four questions before anything clever: do they answer differently,
# did the weights change everywhere or in a few places, where do the activations move, and does each of these numbers
# come out as nothing when there is nothing to find?
#
# The pair here is a small mixture of experts that knows passwords of invented people; tuning taught it to say `sorry`
# instead. Put two folders, hub ids, or a PEFT adapter into `load_pair` to look at your own.

# %%
import probes
import workbench as wb
from workbench import organisms

toy = organisms.build("refusal-moe")
pair = wb.load_pair(toy.base, toy.tuned)
pair

# %% [markdown]
# The prompts: `answer` is what the tuned model should say, `distractor` what the base said. `topic` tells which
# questions tuning was about.

# %%
prompts = wb.Prompts.of(toy.splits["validation"] + toy.splits["ood"])
topic_rows = prompts.filter(lambda row: row.columns["topic"] == "topic")
rest = prompts.filter(lambda row: row.columns["topic"] == "other")
topic_rows

# %% [markdown]
# ## Do they answer differently?
#
# `accuracy`: share of prompts whose next token is the answer; `distracted`: whose next token is the distractor; `kl`:
# how far the next-token distribution went from the base's, in nats. The interval is a 95 % bootstrap over groups of
# prompts (one person, one password), not over tokens.

# %%
on_topic = wb.behaviour_diff(pair, topic_rows, metrics=["accuracy", "distracted", "kl"])
on_topic

# %% [markdown]
# The base never refuses, the tuned model always does. And the questions that tuning was *not* about are the first
# control: they should look alike in both models.

# %%
elsewhere = wb.behaviour_diff(pair, rest, metrics=["accuracy", "kl"])
elsewhere

# %% [markdown]
# ## Did the weights change everywhere?
#
# `score` is the change of a cell relative to its norm. Its control is the same total change spread evenly over the
# layer, and `q` asks whether the cell changed more than its peers. Weights are known exactly, so the interval has no
# width. Three experts stand out; the rest did not move at all.

# %%
weights = probes.weight_delta(pair)
weights.frame("expert").head(6)

# %%
weights.figure("expert")

# %% [markdown]
# ## Where do the activations move?
#
# Both models read the same token ids; we keep the residual stream after every layer at the last prompt token. `score`
# is the length of the mean shift relative to the base's; its control flips the sign of each prompt's shift at random,
# which is what a shift without a common direction would look like.

# %%
recording = wb.record(pair, topic_rows, ["resid_post"], positions="last")
recording

# %%
moved = probes.activation_delta(recording, model=pair.tuned)
moved

# %% [markdown]
# Which words does the mean shift raise and lower, read through the unembedding?

# %%
moved.directions[moved.directions["kind"] == "mean"]

# %% [markdown]
# ## And when there is nothing to find?
#
# The base against a copy of itself. Anything but zeros here would make every number above doubtful.

# %%
null = wb.load_pair(toy.base, toy.base)
nothing = probes.activation_delta(wb.record(null, topic_rows, ["resid_post"], positions="last"))
nothing

# %% [markdown]
# The headline, as a check: tuning turned answers into refusals on its topic alone, and the null comparison is null.

# %%
assert on_topic.value("base", "accuracy") == 0 and on_topic.value("tuned", "accuracy") >= 0.95
assert elsewhere.value("tuned", "accuracy") >= 0.95
assert (nothing.frame()["score"] == 0).all() and (nothing.frame()["q"] == 1).all()
