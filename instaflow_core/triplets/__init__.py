"""Step 1 of the paper: sets of triplets (text, noise, latent) on any filesystem, made by a teacher, read shuffled."""
