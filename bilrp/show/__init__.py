"""To look at explanations: plots, the explorer, figures with sliders."""
