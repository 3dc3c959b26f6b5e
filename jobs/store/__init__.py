"""Where finished things are kept: a local folder, or S3."""
