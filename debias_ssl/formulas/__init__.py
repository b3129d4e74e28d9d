"""Pure functions of tensors and numbers, as the papers write them."""
