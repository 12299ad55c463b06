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
# # From heads to a recipe
#
# Four things lie on a shelf and an instruction asks for one of them. Tuning taught a small Llama a new instruction,
# `third`, by changing the query, key and value rows of three attention heads. We are not told which. We find them, take
# them away, hand them to the base, and keep the result as a file.

# %%
import tempfile
from pathlib import Path

import interventions as iv
import probes
import workbench as wb
from workbench import organisms, stats

toy = organisms.build("planted-heads")
pair = wb.load_pair(toy.base, toy.tuned)
third = wb.Prompts.of(toy.splits["validation"])
known = wb.Prompts.of(toy.splits["retained"])
third.frame().head(3)

# %% [markdown]
# ## Which heads?
#
# Cross-model patching: on the same prompt, one head's output in the base is replaced by what the *tuned* head computes
# from the base's own residual stream. A head that tuning left alone computes the same and scores exactly 0.
# 0 means "as base", 1 means "as tuned", in the logit difference between the answer and what the base would say.
# `control` is the mean of random other heads, `q` the false-discovery rate over all heads.

# %%
patched = probes.patching(pair, toy.splits["train"][:80], "heads", inputs="target")
patched

# %%
patched.figure()

# %% [markdown]
# The two heads in later layers do little alone: they work on what the first one wrote. So we keep every head that
# moved the metric at all.

# %%
table = patched.frame()
heads = [f"L{row.layer}H{row.head}" for row in table[table["score"] > 0].itertuples()]
heads

# %% [markdown]
# ## Take them away
#
# A recipe that scales the outputs of these heads to zero, in the tuned model. Control: ten draws of three random other
# heads of the same layers, averaged per prompt. If any three heads did the same, we would have found nothing.

# %%
off = iv.Recipe([iv.HeadScale(dict.fromkeys(heads, 0.0))])
places = [(int(row.layer), int(row.head)) for row in table[table["score"] > 0].itertuples()]
drawn = stats.random_units(places, [pair.tuned.n_heads] * pair.tuned.n_layers, draws=10)
random_off = [iv.Recipe([iv.HeadScale({head: 0.0 for head in draw})]) for draw in drawn]
off

# %%
without = wb.behaviour_diff(
    pair, third, {"heads off": off}, metrics=["accuracy"], controls={"random heads off": random_off}
)
without

# %% [markdown]
# The instructions that the base knew all along tell the other half: tuning had damaged them, and without the three
# heads they are back.

# %%
before = wb.behaviour_diff(
    pair, known, {"heads off": off}, metrics=["accuracy"], controls={"random heads off": random_off}
)
before

# %% [markdown]
# ## Hand them to the base
#
# The other direction is the stronger claim: the tuned weights of these heads alone, grafted onto the base, and nothing
# else. Control: as many random heads of the same layers, whose weights tuning never touched.

# %%
graft = iv.Recipe([iv.Graft.from_pair(pair, iv.head_mask(pair.base, heads, "qkv"))])
others = [f"L{layer}H{head}" for layer, head in drawn[0]]
other_graft = iv.Recipe([iv.Graft.from_pair(pair, iv.head_mask(pair.base, others, "qkv"))])
grafted = wb.behaviour_diff(
    pair, third, base_recipes={"base + heads": graft, "base + random heads": other_graft}, metrics=["accuracy"]
)
grafted

# %% [markdown]
# ## Keep it
#
# A recipe is one safetensors file. Loading checks that it fits the model it is meant for.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = graft.save(Path(folder) / "third.safetensors", model=pair.base)
    again = iv.Recipe.load(path, pair.base)
again

# %% [markdown]
# The headline, as a check: the planted heads were found, all of them and no other; without them the skill is gone, with
# them alone the base has it.

# %%
assert sorted(heads) == sorted(toy.truth.heads)
assert without.value("heads off", "accuracy") <= 0.3 < 0.6 <= without.value("random heads off", "accuracy")
assert grafted.value("base + heads", "accuracy") >= 0.95 > 0.3 >= grafted.value("base + random heads", "accuracy")
assert again == graft
