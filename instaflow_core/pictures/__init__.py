"""Pictures as tensors and files, charts, and labels under pictures."""
