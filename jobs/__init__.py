"""The work that runs on a Ray cluster: shard, train, evaluate, and what they stand on.

Ray and MLflow read some of their settings when they are imported, so these are made here, before either is.
"""

import os

# After a shutdown no late call may quietly start another cluster.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# By default MLflow tries for four minutes before it says that a server is away. So these are 25 s if that does not
# answer, and two to four if it refuses, in which it may just be starting again.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
