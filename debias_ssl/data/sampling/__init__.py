"""Sampling: which images each step holds, and random numbers that are functions of a key."""
