"""Directions that may stand for a concept, each shown so that a person can name it before it is ablated."""
