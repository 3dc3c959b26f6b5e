"""Golden values of the scores: the reference definitions on the synthetic representations.

    python -m benchmarks.reference.make_golden information sap dci ...

Each family is a module here with a function `golden(representation) -> dict[str, float]`, written from the published
definition with scikit-learn and numpy, as plainly as it goes and slow; no code of `vlae/` is used. The values go to
tests/vlae/metrics/golden/FAMILY.json, which the tests compare with.
"""

import importlib
import json
import sys
import warnings
from pathlib import Path

from benchmarks.reference.representations import NAMES, representation

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "vlae" / "metrics" / "golden"


def main(families: list[str]) -> None:
    """Write the golden files of these families."""
    warnings.simplefilter("ignore")  # the reference divides by zero where a latent is dead
    GOLDEN.mkdir(exist_ok=True)
    for family in families:
        golden = importlib.import_module(f"benchmarks.reference.{family}").golden
        values = {}
        for name in NAMES:
            values[name] = {score: float(value) for score, value in golden(representation(name)).items()}
            print(family, name, values[name], flush=True)
        (GOLDEN / f"{family}.json").write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
