"""Every way to turn one behaviour off, side by side."""
