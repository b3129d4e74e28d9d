"""The annotation loop: which images to label next, labels for annotation tools, and corrections back."""
