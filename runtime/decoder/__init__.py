"""Decoder dialects and the memory that they write in."""
