"""What changed, where, and a recipe without it: python examples/whole_way.py BASE TUNED QUESTIONS [RECIPE]"""

import sys

import probes
import workbench as wb

pair, prompts = wb.load_pair(*sys.argv[1:3], dtype="float32"), wb.Prompts.load(sys.argv[3])
changed, parting = probes.answers(pair, prompts), wb.contrast(pair, prompts)[:12]
print(changed.summary(), changed.frame()[["prompt", "base", "tuned"]].head(6), sep="\n")
print(probes.patching(pair, parting, "resid_post", positions="last").frame()[["layer", "score", "low", "high"]])
print(probes.patching(pair, parting, "heads").summary(), flush=True)
behaviour = changed.behaviour or sys.exit("No behaviour rose beyond chance: there is nothing to turn off.")
off = probes.find_direction(pair, prompts, behaviour, limit=8, candidates=4, max_new_tokens=12)
print(off.summary(), off.held_out, off.recipe.save(*sys.argv[4:] or ["off"], model=pair.tuned), sep="\n")
