"""Recipes out to and in from other tools; what would not be exact is refused, with the reason."""
