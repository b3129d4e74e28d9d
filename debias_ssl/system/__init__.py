"""Files, locks, and errors that users see."""
