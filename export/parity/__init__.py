"""Is what was exported still the model? Tables, and where it differs."""
