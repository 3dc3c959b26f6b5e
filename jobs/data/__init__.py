"""Sources, shards, order and loader: from anyone's images to batches."""
