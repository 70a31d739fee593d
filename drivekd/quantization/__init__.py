"""Weights in fewer bits: one rounding for export, for the search for better values, and for training. Imports torch."""
