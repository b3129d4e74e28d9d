"""Tables of predictions and of the truth: their columns, and the rows that they name."""
