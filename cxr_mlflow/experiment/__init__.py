"""Many cells from one file: planned, trained in processes of their own, compared."""
