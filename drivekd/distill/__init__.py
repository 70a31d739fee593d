"""Distillation: signals, losses, gradient projection, trainer. Imports torch."""
