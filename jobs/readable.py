"""Numbers as people read them. Light: the command prints them before anything heavy is imported."""

import math


def readable(value: float) -> str:
    """Four digits that mean something, and all those before the point: -14,428 and 0.02914."""
    return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:.4g}"
