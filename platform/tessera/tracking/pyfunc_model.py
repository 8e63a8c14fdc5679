"""The code of the registered pyfunc model: raw sections in, membrane probability out.

MLflow copies this file beside the bundle and runs it when the model is loaded; it needs tessera installed there.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel

# MLflow asks for type hints to guess a signature from, although the bundle is logged with one. It sets a filter of its
# own meanwhile, so that ignoring is undone: the warning is caught instead.
with warnings.catch_warnings(record=True):

    class BundleModel(PythonModel):
        """Predicts whole sections, mirrored at their edges, with the bundle's own normalisation and averaging."""

        def load_context(self, context: Any) -> None:
            """Load the bundle from the model's artifacts."""
            from tessera.model.predictor import load_predictor

            self.membrane, self.contract = load_predictor(Path(context.artifacts["weights_keras"]).parent)

        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # hints would become a schema
            """Membrane probability, float32, of raw sections (z, y, x), neighbours as a 2.5D network wants them."""
            from tessera.model.predictor import predict_volume

            raw = model_input["raw"] if isinstance(model_input, dict) else model_input
            return predict_volume(self.membrane, np.asarray(raw), self.contract)


mlflow.models.set_model(BundleModel())
