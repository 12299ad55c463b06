"""A blind audit: from a pair alone, what was the model tuned for?"""
