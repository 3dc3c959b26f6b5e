"""Jobs that run on a Ray cluster (shard, train, tune, evaluate) and the modules that they share.

Ray and MLflow read some environment variables on import, so this module sets them before either is imported.
"""

import os

# After a shutdown no late call may quietly start another cluster.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Set even if the environment differs, because the jobs need Ray Train V2 and processes of their own.
os.environ.update({"RAY_TRAIN_V2_ENABLED": "1", "RAY_CLIENT_MODE": "0"})
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow's defaults retry for four minutes. These values let a call fail after 25 s without an answer, or after 2 to 4 s
# of refused connections, during which a restarting server may come up.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
# Because a server could ask for a pause of hours.
os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")
