"""Finding the direction that carries a free-text behaviour, and recipes that turn it off or make the base show it."""
