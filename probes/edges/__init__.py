"""Edges: which component passes what to which other, in one model and beside another."""
