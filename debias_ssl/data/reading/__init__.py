"""Reading: decodes image files to pixels, caches decoded images, and runs the processes that decode in advance."""
