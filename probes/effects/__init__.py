"""Effects of tuning on behaviour, one panel each: what got better or worse, for whom, and beside which control."""
