"""Formulas of the papers, as pure functions of tensors and numbers."""
