"""Sparse dictionaries trained on both models' activations: crosscoders, and autoencoders of the difference."""
