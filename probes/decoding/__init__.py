"""What decoding shows of a tuning: texts mined from the difference of two models, and where probability moved."""
