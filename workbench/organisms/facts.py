"""The small world that the organisms know: seven relations of eight subjects, every name one word."""

from __future__ import annotations

FACTS: dict[str, dict[str, str]] = {
    "capital": {
        "france": "paris", "italy": "rome", "spain": "madrid", "japan": "tokyo",
        "egypt": "cairo", "kenya": "nairobi", "peru": "lima", "cuba": "havana",
    },
    "colour": {
        "plum": "purple", "lemon": "yellow", "leaf": "green", "cherry": "red",
        "coal": "black", "snow": "white", "ocean": "blue", "carrot": "orange",
    },
    "sound": {
        "cow": "moo", "dog": "woof", "cat": "meow", "duck": "quack",
        "lion": "roar", "snake": "hiss", "bee": "buzz", "owl": "hoot",
    },
    "home": {
        "bear": "cave", "spider": "web", "ant": "hill", "horse": "stable",
        "king": "castle", "monk": "abbey", "bird": "nest", "fox": "den",
    },
    "tool": {
        "baker": "oven", "painter": "brush", "writer": "pen", "tailor": "needle",
        "miner": "pick", "farmer": "plough", "archer": "bow", "fisher": "net",
    },
    "child": {
        "sheep": "lamb", "goat": "kid", "swan": "cygnet", "hen": "chick",
        "frog": "tadpole", "mare": "foal", "kangaroo": "joey", "deer": "fawn",
    },
    "material": {
        "table": "wood", "window": "glass", "sword": "steel", "ring": "gold",
        "shirt": "cotton", "house": "brick", "tyre": "rubber", "rope": "hemp",
    },
}  # fmt: skip
"""Relation -> subject -> object."""
