"""The hook engine: sites, positions, and one context manager that owns every hook.

The model stays a plain Hugging Face model; we register torch hooks on its modules and nothing else.
"""
