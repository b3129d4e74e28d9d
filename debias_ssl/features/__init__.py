"""Features of images: made once by a pretrained network, and kept in shards."""
