"""Labels by the votes of several classifiers."""
