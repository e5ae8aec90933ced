"""Services that cannot be used are refused, not waited for."""

import socket

import pytest

from train_loop.builders.data import check_service
from train_loop.errors import UserError


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("localhost:5050", "must begin with grpc://"),
        ("http://localhost:5050", "must begin with grpc://"),
        ("grpc://localhost", "cannot be reached"),
        ("grpc://localhost:99999", "cannot be reached"),
        ("grpc://localhost:1", "cannot be reached"),
    ],
)
def test_services_that_cannot_be_reached_are_one_clear_line(address, expected):
    with pytest.raises(UserError) as error:
        check_service(address, "none")
    [line] = str(error.value).splitlines()
    assert line.startswith(f"--data_service={address} cannot be reached")
    assert expected in line


def test_cache_that_its_workers_cannot_read_is_refused():
    with socket.create_server(("localhost", 0)) as server:
        address = f"grpc://localhost:{server.getsockname()[1]}"
        for cache in ("none", "memory"):
            check_service(address, cache)
        with pytest.raises(UserError, match="^--cache=disk is read by this "):
            check_service(address, "disk")
