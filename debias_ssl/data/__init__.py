"""Data from its source to the batches of a run: images, their split, their pixels, and views of them."""
