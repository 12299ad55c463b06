"""Models and pairs of models: from what a person gives to what the engine runs."""
