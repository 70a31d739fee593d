"""Records go out: in the formats of other tools, and split into training and test."""
