"""What MLflow keeps as the code of a registered model and runs when it is loaded; see jobs/tracking/pyfunc.py."""

from mlflow.models import set_model

from jobs.tracking.pyfunc import VlaeEncoder

set_model(VlaeEncoder())
