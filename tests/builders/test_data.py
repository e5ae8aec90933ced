"""Checks of the data service."""

import socket

import pytest

from train_loop.builders.data import check_service
from train_loop.errors import UserError


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("localhost:5050", "must begin with grpc://"),
        ("http://localhost:5050", "must begin with grpc://"),
        ("grpc://localhost", "not reachable"),
        ("grpc://localhost:99999", "not reachable"),
        ("grpc://localhost:1", "not reachable"),
    ],
)
def test_unreachable_data_service_is_an_error_in_one_line(address, expected):
    with pytest.raises(UserError) as error:
        check_service(address, "none")
    [line] = str(error.value).splitlines()
    assert line.startswith(f"--data_service={address}: not reachable")
    assert expected in line


def test_disk_cache_with_a_data_service_is_an_error():
    with socket.create_server(("localhost", 0)) as server:
        address = f"grpc://localhost:{server.getsockname()[1]}"
        for cache in ("none", "memory"):
            check_service(address, cache)
        with pytest.raises(
            UserError, match="^--cache=disk: cannot be combined"
        ):
            check_service(address, "disk")
