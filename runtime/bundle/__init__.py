"""What a bundle holds, verified while it is read."""
