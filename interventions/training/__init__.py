"""Learning offsets and scales of heads, and training a model while a concept is ablated."""
