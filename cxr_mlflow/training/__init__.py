"""Fitting weights. Knows tensors, not MLflow."""
