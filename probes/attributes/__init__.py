"""Attributes of texts as dials: found, measured without a judge, steered one by one or together."""
