"""Which images each step holds, and random numbers as functions of a key."""
