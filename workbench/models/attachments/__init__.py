"""Trained modules and prompt rows of Tunescope's own kinds, put beside a frozen base and taken off again."""
