"""Write the golden values of the metrics: the reference definitions on the synthetic representations.

    python -m benchmarks.reference.make_golden information sap dci ...

Each argument is a module of this package with a function `golden(data) -> dict[str, float]`: the published definition
with scikit-learn and numpy, plain and slow, without code of `vlae`. The values go to
tests/vlae/metrics/golden/MODULE.json, which the tests compare with.
"""

import importlib
import json
import sys
import warnings
from pathlib import Path

from benchmarks.reference.representations import NAMES, representation

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "vlae" / "metrics" / "golden"


def main(modules: list[str]) -> None:
    """Write the golden files of the modules."""
    warnings.simplefilter("ignore")  # because the references divide by zero where a latent is constant
    GOLDEN.mkdir(exist_ok=True)
    for module in modules:
        golden = importlib.import_module(f"benchmarks.reference.{module}").golden
        values = {}
        for name in NAMES:
            values[name] = {metric: float(value) for metric, value in golden(representation(name)).items()}
            print(module, name, values[name], flush=True)
        (GOLDEN / f"{module}.json").write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
