"""Frames in, overlays out."""
