"""The blind audit scored: pairs whose tuning is known, and ten descriptions of which one is right."""
