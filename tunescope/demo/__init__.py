"""The demo: two organisms, what tuning did to them, where it lives, and how to turn it up, down or off."""
