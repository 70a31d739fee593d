"""What an export reads: checkpoint, prompts, reference outputs."""
