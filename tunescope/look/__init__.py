"""``tunescope look``: what changed, where, how it is turned, and what is kept of it, in one go."""
