"""Weak and strong views (augmentations) of whole batches of images."""
