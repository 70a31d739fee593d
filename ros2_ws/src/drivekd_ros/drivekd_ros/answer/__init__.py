"""From a frame to published answers."""
