"""Files and folders of weights: told apart, read into a `Checkpoint`, written again."""
