"""A finished run elsewhere: as one file that needs nothing of this package, and on a hub."""
