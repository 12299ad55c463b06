"""Probes over a series of fine-tunes of one base: profiles of change, churn of masks, curves, merges."""
