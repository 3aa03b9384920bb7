"""What a model is worth: its pictures of many prompts, measured as papers measure theirs."""
