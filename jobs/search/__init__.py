"""A search over settings: its space, its proposals, its trials."""
