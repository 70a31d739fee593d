"""What the node is told and what it tells of itself."""
