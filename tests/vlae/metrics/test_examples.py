"""Every public metric has an example; tests/vlae/test_public_api.py runs the examples."""

import vlae.metrics


def test_public_metrics_have_an_example() -> None:
    functions = [getattr(vlae.metrics, name) for name in vlae.metrics.__all__]
    functions = [function for function in functions if callable(function) and not isinstance(function, type)]
    assert [function.__name__ for function in functions if ">>>" not in (function.__doc__ or "")] == []
