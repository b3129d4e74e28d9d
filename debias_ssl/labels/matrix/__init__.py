"""Predictions of any classifier as a matrix of logits, with its names and its known labels."""
