"""Runs: from settings to a run folder, its contents, trained runs loaded to predict, and comparisons of runs."""
