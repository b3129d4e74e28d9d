"""Sampling: the images of each step, and random numbers that are functions of a key."""
