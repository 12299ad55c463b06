"""Which weights a method would select: one interface for scores per entry, and the test that judges every selection."""
