"""The Ray cluster: start or join one, resources of the workers, events from worker to driver."""
