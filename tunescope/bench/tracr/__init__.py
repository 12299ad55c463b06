"""Programs that Tracr compiled into weights: circuits that are known by construction and that nobody here planted."""
