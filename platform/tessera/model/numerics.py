"""How numbers are computed: float32 that is float32, mixed precision, deterministic ops.

On a GPU TensorFlow multiplies float32 matrices in TF32, with 10 bits of mantissa, unless it is told not to: two tilings
of one volume would differ by 1e-3 rather than 1e-5. Training and inference both switch that off, here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Numerics:
    """How training computes.

    Args:
      precision: float32, or mixed: float16 activations with float32 weights and a dynamically scaled loss (Micikevicius
        et al. 2018), for GPUs; tested on CPUs only, where it is slower. Validation and the bundle are float32 in any
        case.
      deterministic: the same losses in every run with the same workers and threads, at some cost in speed; training
        with an operation that cannot be deterministic fails.
    """

    precision: Literal["float32", "mixed"] = "float32"
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "mixed"):
            raise ValueError(
                f"precision={self.precision!r} is unknown: weights are float32 always, and activations either float32 "
                "or float16. Try 'float32' or 'mixed'."
            )


FLOAT32 = Numerics()


def switch_off_tf32() -> None:
    """Compute float32 products in float32, on a GPU too; does nothing on a CPU."""
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)


def switch_on_determinism() -> None:
    """Make this process's TensorFlow operations repeatable from here on; seeds must have been set."""
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


@contextmanager
def layers_of(precision: Literal["float32", "mixed"]) -> Iterator[None]:
    """Layers that are built inside compute in this precision; their variables are float32 in either."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16" if precision == "mixed" else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def fused_normalisation() -> Any:
    """A batch normalisation that trains in one TensorFlow operation, and its gradient in another.

    Keras computes moments, scale and offset one by one, over arrays that no cache holds: of a training step of the
    U-Net on two CPU cores that is about a fifth. Weights, names and what is computed are Keras'; only the order of
    float32 additions differs. It knows its own replica alone: several workers take Keras' synchronised one.

    Returns:
      A subclass of `keras.layers.BatchNormalization`, to train with; what is kept is built of Keras' own layers.

    Source: Ioffe and Szegedy 2015, algorithm 1.
    """
    import keras
    import tensorflow as tf

    class FusedBatchNormalization(keras.layers.BatchNormalization):
        """One operation where Keras has a dozen."""

        def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
            if not (training and self.trainable):
                return super().call(inputs, training=training, mask=mask)
            # Keras computes in float32 whatever the policy, and so does this.
            normalised, mean, variance = tf.compat.v1.nn.fused_batch_norm(
                tf.cast(inputs, tf.float32), self.gamma, self.beta, epsilon=self.epsilon, is_training=True
            )
            count = tf.cast(tf.size(inputs) / tf.shape(inputs)[-1], tf.float32)
            # The operation divides by count - 1 where Keras' moving variance, as the paper's batch, has count.
            batch = (mean, variance * (count - 1.0) / count)
            for moving, value in zip((self.moving_mean, self.moving_variance), batch, strict=True):
                moving.assign(moving * self.momentum + value * (1.0 - self.momentum))
            return tf.cast(normalised, self.compute_dtype)

    return FusedBatchNormalization


def agreed(gradients: Sequence[Any], add_over_replicas: Callable[[Any], Any]) -> list[Any]:
    """Gradients that overflowed on one replica become NaN on all of them, so that all skip the step.

    Keras' loss scaling looks at its own replica's gradients, and only where they are finite takes part in the sum over
    replicas: the others would wait for it for ever.

    Args:
      gradients: float32 tensors of this replica.
      add_over_replicas: sums a tensor over replicas.
    """
    from keras import ops

    unfit = [ops.sum(ops.cast(ops.logical_not(ops.isfinite(one)), "float32")) for one in gradients]
    poison = ops.where(add_over_replicas(sum(unfit)) > 0, float("nan"), 0.0)
    return [one + poison for one in gradients]
