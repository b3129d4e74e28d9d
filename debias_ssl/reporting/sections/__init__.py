"""Sections that several pages share: figures with captions, tables and example images."""
