"""What shape an update has: inside or outside the base's leading space, low-rank or sparse, new directions or old."""
