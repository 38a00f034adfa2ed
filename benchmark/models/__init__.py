"""How any model of a recipe is built, and the reference models that give the embedded pool its scores."""
