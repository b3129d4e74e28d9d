"""Distributed work: collectives, running state that all processes share, signals, and the end of processes."""
