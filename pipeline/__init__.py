"""What runs, and with which settings."""
