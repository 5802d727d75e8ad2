"""Many inputs: their features and factors in a store, search, contrasts, themes, repair."""
