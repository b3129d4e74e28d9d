"""Pixels of images: decoding, the cache of decoded images, and processes that decode in advance."""
