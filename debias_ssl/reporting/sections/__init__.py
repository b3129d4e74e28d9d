"""Figures with their captions, and other parts, that several pages have in common."""
