"""Linear probes on attention heads, all solved at once (inference-time intervention, Li et al. 2023)."""
