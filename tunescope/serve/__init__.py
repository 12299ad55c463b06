"""An OpenAI-compatible server on our own engine: base, tuned and steered models side by side, a recipe per request."""
