"""The commands of `python -m instaflow_core`: each module adds its own to the parser."""
