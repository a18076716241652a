"""The rooms that talk to MLflow."""
