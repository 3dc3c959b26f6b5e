"""The command: its settings, the decision which stages run, and what the terminal and MLflow show."""
