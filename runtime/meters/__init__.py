"""Power, memory, temperature, health."""
