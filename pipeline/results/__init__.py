"""Tables and pages of results over several seeds: `python -m pipeline.results`."""
