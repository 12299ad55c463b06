"""Attention: which heads to change and how far, what tuning did to it, and what it pays to the user's words."""
