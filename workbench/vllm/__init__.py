"""vLLM as an engine for what Tunescope reads and changes: the residual stream and what sublayers write, per request."""
