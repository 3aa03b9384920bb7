"""How the built-in models are trained from nothing: `stages.py` is the order of it, `recipe.py` the numbers."""
