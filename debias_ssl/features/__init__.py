"""Features of images: a pretrained network computes them once, and they are stored in shards."""
