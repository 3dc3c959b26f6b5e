"""The work that runs on a Ray cluster: shard, train, evaluate, and what they stand on."""
