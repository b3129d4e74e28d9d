"""Reads and checks run folders and comparisons for their pages."""
