"""A registered model is loaded without a word of MLflow's about what it does not need."""

from __future__ import annotations

import runpy
import warnings

from tessera.tracking.models import CODE


def test_the_registered_model_s_code_is_silent() -> None:
    warnings.onceregistry.clear()  # type: ignore[attr-defined]  # MLflow says it once a process
    with warnings.catch_warnings(record=True) as heard:
        runpy.run_path(str(CODE))
    assert [str(one.message) for one in heard if "type hint" in str(one.message)] == []
