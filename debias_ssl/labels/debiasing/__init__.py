"""Removes a class prior from rows of logits, and decides which rows get which label."""
