"""To judge explanations: baselines, metrics, controls."""
