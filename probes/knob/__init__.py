"""The context knob: one direction in the residual stream that decides between two intents.

After Minder, Du et al. 2024, "Controllable Context Sensitivity and the Knob Behind It".
"""
