"""The engine: a recorded forward pass, relevance maps, shares, factors, explanations."""
