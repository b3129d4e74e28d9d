"""Deployment of a finished run: export to one file that needs no code of this package, and upload to a hub."""
