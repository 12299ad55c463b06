"""Paths and circuits: which heads reach the answer through which, and whether those heads alone suffice."""
