"""RAVEL: whether a subspace holds one attribute of an entity and no other (Huang et al. 2024)."""
