"""What a run leaves behind, and comparisons of runs."""
