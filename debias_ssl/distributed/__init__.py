"""What processes that work together agree on: sums, running state, signals, ends."""
