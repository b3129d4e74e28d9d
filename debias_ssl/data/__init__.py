"""Data: lists of images, their split, their pixels, their views, and the batches of a run."""
