"""Sampling: which images each step takes, and random numbers that are functions of a key."""
