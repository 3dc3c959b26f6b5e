"""Random kills of workers, command and servers leave weights, checkpoints and curves unchanged."""

from pathlib import Path

import pytest
from helpers.chaos import VICTIMS, chaos


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    killed = chaos(seed=0, kills=20, steps=2000, folder=tmp_path)
    assert killed.total() >= 20
    assert set(killed) == set(VICTIMS)
