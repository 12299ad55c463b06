"""Retrieval heads: which heads copy from far back in the context (Wu et al. 2024)."""
