"""Sessions that outlive an engine: a process of their own, a ladder of fallbacks."""
