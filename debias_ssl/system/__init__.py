"""The lowest layer: files, locks, tables, ranges of settings, and errors for users."""
