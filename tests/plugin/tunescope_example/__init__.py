"""An example of a plug-in: one file, one entry point."""
