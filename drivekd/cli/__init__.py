"""The `drivekd` command: verbs, and what they print."""

from .verbs import app, main

__all__ = ["app", "main"]
