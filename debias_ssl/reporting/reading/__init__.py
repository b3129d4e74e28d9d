"""Run folders and comparisons, read and checked before a page is made of them."""
