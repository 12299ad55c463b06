"""Activation patching, within a model and across models: exact, and estimated by gradients."""
