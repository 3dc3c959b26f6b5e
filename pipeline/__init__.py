"""The command: its settings, the decision which stages run, and what the terminal and MLflow show."""

import sys
from importlib.util import find_spec
from pathlib import Path

# Python searches the current folder first, so a folder `jobs` of the user would run instead of ours.
for _name in ("jobs", "vlae"):
    _origin = getattr(find_spec(_name), "origin", None)
    if not _origin or Path(_origin).resolve().parent != Path(__file__).resolve().parents[1] / _name:
        sys.exit(
            f"error: {_origin or _name}: not the package {_name} of this project. Run the command in another folder."
        )
