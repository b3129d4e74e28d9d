"""Reading: decodes image files to pixels, caches them, runs decoding processes, and reads stored features."""
