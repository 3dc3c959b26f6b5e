"""What MLflow keeps as the code of a registered model and runs when it is loaded; see jobs/serving.py."""

from mlflow.models import set_model

from jobs.serving import RungCodes

set_model(RungCodes())
