"""Gates: when an intervention should act, fitted on labelled prompts."""
