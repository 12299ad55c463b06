"""Conditional computation: which neurons fire, and which layers a sample needs."""
