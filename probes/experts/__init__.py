"""Experts of a mixture: which ones a behaviour uses, and what switching them does to it."""
