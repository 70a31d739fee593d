"""What a run will cost, before it is paid: memory, disk and time."""
