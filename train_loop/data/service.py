"""The tf.data service that may prepare batches on other machines."""

import socket
import urllib.parse

from train_loop.errors import UserError


def check_service(address, cache):
    """Raises UserError where the service cannot be used.

    TensorFlow would wait for ever.

    Args:
      address: such as grpc://host:5050.
      cache: row of `CACHES` that the examples are kept in.
    """
    parts = urllib.parse.urlsplit(address)
    try:
        if parts.scheme != "grpc":
            raise ValueError("it must begin with grpc://")
        place = (parts.hostname, parts.port)
        socket.create_connection(place, timeout=10).close()
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"--data_service={address} cannot be reached ({error}); start its "
            "dispatcher, or leave the flag out"
        ) from error
    if cache == "disk":
        raise UserError(
            "--cache=disk is read by this process only, not by the workers of "
            f"--data_service={address}; take --cache=none or memory"
        )
