"""Benches: what methods find, against what is known to be there."""
