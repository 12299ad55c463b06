"""The four steps of a pair: What changed? Where? Turn it. Keep it."""
