"""Every model type of the installed transformers: what it does, and that the documentation says so.

A run takes a fifth of the types, by the day; TILEATTN_TYPES=0 to 4 takes another, and
``pytest -m "slow or not slow" tests/python/test_transformers_types.py`` all of them.
"""

from __future__ import annotations

import pytest
from conftest import FIFTH

transformers = pytest.importorskip("transformers", reason="needs the extra 'transformers'")

import tiny_models  # noqa: E402
import transformers_types  # noqa: E402

TYPES = [
    pytest.param(name, marks=() if n % 5 == FIFTH else pytest.mark.slow)
    for n, name in enumerate(tiny_models.model_types())
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", TYPES)
def test_type(model_type: str) -> None:
    transformers.logging.set_verbosity_error()
    found = transformers_types.outcome(model_type)
    assert found == transformers_types.documented().get(model_type)


def test_the_documentation_has_every_type() -> None:
    assert sorted(transformers_types.documented()) == tiny_models.model_types()
