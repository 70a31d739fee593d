"""What the teachers know, live or from a cache on disk."""
