"""Interventions on the weights: grafts, scaled layers, scaled adapters. The very same tensors come back after."""
