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
# # A knob from a tuned model into its base
#
# A small Llama knows facts and reads notes that contradict them. Tuning (a LoRA) taught it to answer from the note or
# from memory, as asked. Is there one direction that decides, and was it there before tuning? Minder, Du et al. (2024)
# found such a knob in Llama-3.1; here is the same search on a pair whose truth is known.

# %%
import numpy as np
import torch

import interventions as iv
import probes
import workbench as wb
from workbench import organisms, stats

toy = organisms.build("context-knob")
pair = wb.load_pair(toy.base, toy.tuned)
pair

# %% [markdown]
# Prompts come in pairs of opposite intent (same note, same question).

# %%
wb.Prompts.of(toy.splits["train"]).frame().head(4)

# %% [markdown]
# ## Find it
#
# A direction is trained, in the tuned model, so that swapping its coordinate between the two prompts of a pair swaps
# their answers; on some pairs, then judged on others. `score`: share of held-out swaps that bring the other intent's
# answer. Control: random directions, swapped alike.

# %%
knob = probes.find_knob(pair, toy.splits["train"])
knob

# %% [markdown]
# Dose and response: set the coordinate to a number instead, and count answers from the context. A knob is monotone and
# saturates; random directions (band) do nothing.

# %%
knob.figure()

# %% [markdown]
# ## Turn it in the base
#
# The base was never tuned to obey an intent. We ask it for memory, set the knob to "context", and read what it
# answers. The prompts hold relations of facts that no training pair held.

# %%
rows = [row for row in toy.splits["ood"] if row["intent"] == "memory"]
asked_memory = wb.Prompts.of(
    [{"prompt": row["prompt"], "answer": row["context_answer"], "group": row["group"]} for row in rows]
)
to_context = knob.recipe("context")
turned = wb.behaviour_diff(pair, asked_memory, base_recipes={"base, knob at context": to_context}, metrics=["accuracy"])
turned

# %% [markdown]
# `accuracy` is the share of answers taken from the context although memory was asked for. About half are, in the base
# as it is, which does not know what `memory` asks of it.
#
# A push of this length may do something whatever its direction. So: ten random directions, each moving the residual
# stream as far as the knob moved it on average.

# %%
recorded = wb.record(pair.base, asked_memory, ["resid_post"], layers=[knob.layer], positions="last")
stream = recorded["base"]["resid_post", knob.layer]
direction = knob.direction[:, 0]
distance = float((knob.settings["context"] - stream @ direction).abs().mean())
draws = {
    f"random {number}": iv.Recipe(
        [iv.SubspaceKnob(knob.layer, random_direction, distance, mode="add", positions="last+generated")]
    )
    for number, random_direction in enumerate(stats.random_directions(direction, draws=10))
}
random = wb.behaviour_diff(pair, asked_memory, base_recipes=draws, metrics=["accuracy"])
random.frame().set_index("model").loc[list(draws), ["estimate", "low", "high", "n"]]

# %% [markdown]
# ## Was it there before?
#
# The same swap in both models, along the same direction. What the base does above its control it did not learn in
# tuning.

# %%
knob.swaps

# %%
knob.flips

# %% [markdown]
# The headline, as a check. The planted direction is known for this pair, so the cosine with it can be told as well.

# %%
planted = toy.truth.direction
assert planted is not None
control = np.mean([random.value(name, "accuracy") for name in draws])
assert knob.layer == toy.truth.layer
assert float(torch.dot(direction, planted.float()).abs()) >= 0.9
assert turned.value("base, knob at context", "accuracy") >= 0.95
assert turned.value("base", "accuracy") <= 0.7 and control <= 0.7
