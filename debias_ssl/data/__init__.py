"""Which images there are, which of them each step holds, and as which views."""
