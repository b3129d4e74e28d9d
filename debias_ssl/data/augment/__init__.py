"""Weak and strong views of images, as whole batches."""
