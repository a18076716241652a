"""Numbers, figures and words about a finished model. Knows neither MLflow nor torch."""
