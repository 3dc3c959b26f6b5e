"""Submit the pipeline to a running Ray cluster: `python -m jobs.submit`."""
