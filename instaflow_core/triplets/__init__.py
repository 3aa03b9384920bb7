"""Step 1 of the paper: sets of (text, noise, latent) on any filesystem, made from a teacher, read in shuffled order."""
