"""What several tests share: small datasets, jobs, models and commands."""

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]
