"""Where things are: tests import it, whatever folder they lie in."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
