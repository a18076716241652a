"""From image bytes to probabilities, without torch."""
