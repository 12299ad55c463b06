"""What changed, where, and a recipe without it: python examples/whole_way.py BASE TUNED QUESTIONS [RECIPE]"""

import sys

import probes
import workbench as wb

pair, prompts = wb.load_pair(*sys.argv[1:3], dtype="float32"), wb.Prompts.load(sys.argv[3])
changed, parting = probes.answers(pair, prompts), wb.contrast(pair, prompts)[:24]
print(changed.summary(), changed.frame()[["prompt", "base", "tuned"]].head(6), sep="\n")
print(probes.patching(pair, parting, "resid_post", positions="last").frame()[["layer", "score", "low", "high"]])
print(probes.patching(pair, parting, "heads").summary())
found = probes.find_direction(pair, prompts, changed.behaviour or sys.exit("No behaviour rose: nothing to turn off."))
recipe = found.recipe.save(*sys.argv[4:] or ["off.safetensors"], model=pair.tuned)
print(found.summary(), found.held_out, recipe, sep="\n")
