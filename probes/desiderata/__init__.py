"""Desiderata: what a head must carry if moving one variable moves the answer so; and a task made for asking it."""
