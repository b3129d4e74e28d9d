"""Data sets: each gives lists of images with labels."""
