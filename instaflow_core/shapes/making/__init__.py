"""How the built-in models are trained from nothing; `recipe.py` is the order of it."""
