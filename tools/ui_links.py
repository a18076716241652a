"""The addresses in the MLflow UI where the runs of a store are compared, for `make ui`.

python -m tools.ui_links sqlite:///mlflow.db http://127.0.0.1:5000
"""

from __future__ import annotations

import sys

from cxr_mlflow.tracking.run import set_tracking_uri
from cxr_mlflow.tracking.views import TAG, view_links


def lines(store: str, address: str) -> list[str]:
    """Write two lines for each experiment that has the view."""
    import mlflow

    set_tracking_uri(store)
    return [
        f"{each.name}, {what}: {link}"
        for each in mlflow.MlflowClient().search_experiments()
        if TAG in each.tags
        for what, link in view_links(address, each.experiment_id).items()
    ]


if __name__ == "__main__":
    print("\n".join(lines(*sys.argv[1:3])))
