"""Chest X-ray classification that people can trust, run and compare through MLflow."""

__version__ = "0.1.0"
