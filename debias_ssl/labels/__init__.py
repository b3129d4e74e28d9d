"""Labels of rows of predictions, without a preference for classes."""
