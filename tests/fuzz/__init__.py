"""Hostile and damaged files: one sentence or taken, never a traceback, never half a file."""
