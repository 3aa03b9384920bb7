"""Steps 2 and 3 of the paper: batches of a set, the objectives, the loop that minimises them, whole runs."""
