"""The backend of Keras, which must be TensorFlow."""

import os


def check_backend():
    """Raises ImportError where the Keras of this process runs on another one.

    What `tf.keras` raises then names neither the backend nor the variable.
    """
    advice = "Set it before Python starts, or before Keras is imported."
    # What TensorFlow takes for yes.
    if os.environ.get("TF_USE_LEGACY_KERAS") in ("true", "True", "1"):
        raise ImportError(
            "resnet_layers requires Keras 3: TF_USE_LEGACY_KERAS must be 0. "
            f"{advice}"
        )
    try:
        from keras.config import backend

        found = backend()
    except ImportError as error:
        # The backend that it is to run on may not be installed.
        found = os.environ.get("KERAS_BACKEND", f"another one ({error})")
    if found != "tensorflow":
        raise ImportError(
            "resnet_layers requires Keras on TensorFlow, and this process has "
            f"Keras on {found}: KERAS_BACKEND must be tensorflow. {advice}"
        )
