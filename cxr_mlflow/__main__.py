"""`python -m cxr_mlflow` is the `cxr` command; MLproject calls it this way."""

from cxr_mlflow.cli import main

if __name__ == "__main__":
    main(prog_name="cxr")
