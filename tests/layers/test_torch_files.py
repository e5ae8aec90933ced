"""Files of torch.save: read without torch, and without running code."""

import os
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file
from torch_files import (
    Call,
    Name,
    Tensor,
    pickled,
    write_old_torch,
    write_torch,
)
from weight_nets import assert_refused, assert_same_weights, small

from resnet_layers import (
    WeightsError,
    find_weights,
    load_weights,
    read_num_classes,
    save_safetensors,
)
from resnet_layers.weights.pickles import FUNCTIONS

WRITE = (write_torch, write_old_torch)


@pytest.fixture
def state(tmp_path):
    """Returns {torch's name: array} of `small()`, and what torch counts."""
    save_safetensors(small(), tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    return {**tensors, "bn1.num_batches_tracked": np.array(3, "i8")}


@pytest.mark.parametrize("write", WRITE)
@pytest.mark.parametrize("name", ["m.pth", "m.pt", "m.th", "m.pth.tar", "m"])
def test_files_of_torch_are_read(write, name, state, tmp_path):
    path = tmp_path / name
    write(path, state)
    model = small(seed=2)
    assert load_weights(model, path)[:2] == ("torch", True)
    for mine, read in zip(model.weights, small().weights, strict=True):
        np.testing.assert_array_equal(mine, read)
    assert read_num_classes(path) == 7
    assert find_weights(str(path)).preprocessing.normalization is not None


@pytest.mark.parametrize("write", WRITE)
@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda state, other: {"epoch": 3, "state_dict": state}, "state_dict."),
        (lambda state, other: {"net": state, "acc": 93.1}, "net."),
        (
            lambda state, other: {"model": {"state_dict": state}, "lr": 0.1},
            "model.state_dict.",
        ),
        (
            lambda state, other: {"model": other, "model_ema": state},
            "model_ema.",
        ),
        (
            lambda state, other: {"state_dict": other, "state_dict_ema": state},
            "state_dict_ema.",
        ),
    ],
)
def test_states_are_found_in_checkpoints(write, wrap, prefix, state, tmp_path):
    other = {n: np.ones_like(array) for n, array in state.items()}
    content = wrap(state, other)
    content["optimizer"] = {"state": {"0": np.zeros(3, "f4")}, "groups": [None]}
    write(tmp_path / "m.pth", content)
    model = small(seed=2)
    loaded = load_weights(model, tmp_path / "m.pth")
    assert loaded.notes == (f"its names begin with {prefix}",)
    assert_same_weights(model, small())
    assert read_num_classes(tmp_path / "m.pth") == 7


@pytest.mark.parametrize("write", WRITE)
def test_tensors_are_read_in_the_order_that_they_have_in_memory(
    write, state, tmp_path
):
    kernel = state["conv1.weight"]
    channels_last = np.ascontiguousarray(kernel.transpose(0, 2, 3, 1))
    state["conv1.weight"] = channels_last.transpose(0, 3, 1, 2)
    state["bn1.bias"] = state["bn1.bias"].astype("float16")
    write(tmp_path / "m.pth", state)
    model, expected = small(seed=2), small()
    load_weights(model, tmp_path / "m.pth")
    half = np.asarray(expected.stem.bns[0].beta).astype("f2")
    expected.stem.bns[0].beta.assign(half.astype("f4"))
    assert_same_weights(model, expected)


def touch(path):
    return Call("posix\nsystem", f"touch {path}")


@pytest.mark.parametrize("write", WRITE)
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (touch, "needs posix.system, and reading that may run code"),
        (lambda path: Call("builtins\neval", "1"), "needs builtins.eval"),
        (lambda path: Name("argparse\nNamespace"), "argparse.Namespace"),
        (
            lambda path: Call("torch.nn.modules.linear\nLinear"),
            "torch.nn.modules.linear.Linear",
        ),
        # A type is no function.
        (
            lambda path: Call("torch\nFloatStorage", 10**9),
            "needs something that it makes",
        ),
    ],
)
def test_what_would_run_code_is_rejected(
    write, make, expected, state, tmp_path
):
    path, proof = tmp_path / "m.pth", tmp_path / "proof"
    write(path, {"state_dict": state, "args": make(proof)})
    assert_refused(small(seed=2), path, expected)
    with pytest.raises(WeightsError, match="where you trust the file"):
        read_num_classes(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"(S'touch proof'\nios\nsystem\n.",
        b"\x80\x02cposix\nsystem\nX\x01\x00\x00\x00a\x85\x81.",
        b"\x80\x02(cposix\nsystem\nX\x01\x00\x00\x00ao.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93X\x01\x00\x00\x00a\x85R.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02ccollections\nOrderedDict\n)R}(X\x01\x00\x00\x00a0\x81b.",
        b"\x80\x02R.",
        b"\x80\x02]q\x00h\x01.",
        # A key of tuples in tuples, which takes years to hash.
        b"\x80\x02})q\x00" + 60 * b"h\x00\x86q\x00" + b"Ns.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02K\x01K\x02b.",
        b"\x80\x02]",
        b"\x80\x02X\xff\xff\xff\xffa.",
        b"\x80",
    ],
)
def test_other_instructions_are_rejected(code, tmp_path):
    path = tmp_path / "m.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", code)
    assert_refused(small(), path, "cannot be")
    if code.startswith(b"\x80"):
        path.write_bytes(code)
        assert_refused(small(), path, "cannot be")


def test_functions_are_harmless():
    """Nothing but what makes containers and descriptions of tensors."""
    modules = {getattr(f, "__module__", None) for f in FUNCTIONS.values()}
    assert modules == {"resnet_layers.weights.pickles"}


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(1, (8,), (1,)), (0, (3, 3), (3, 1)), (-1, (2,), (1,)), (7, (2,), (-1,))],
)
@pytest.mark.parametrize("write", WRITE)
def test_tensors_stay_within_their_numbers(
    write, offset, shape, strides, tmp_path
):
    bias = Tensor(np.zeros(8, "f4"), offset, shape, strides)
    # The numbers of another tensor stand behind.
    write(tmp_path / "m.pth", {"fc.bias": bias, "x": np.zeros(100, "f4")})
    assert_refused(small(), tmp_path / "m.pth", "reaches out of its storage")


@pytest.mark.parametrize("write", WRITE)
def test_truncated_files_are_one_clear_line(write, state, tmp_path):
    path = tmp_path / "m.pth"
    write(path, state)
    content = path.read_bytes()
    for size in (len(content) // 2, len(content) - 30):
        path.write_bytes(content[:size])
        assert_refused(small(seed=2), path, "cannot be read")


def test_what_torch_does_not_write_is_rejected(state, tmp_path):
    path = tmp_path / "m.pth"
    write_torch(path, state, zipfile.ZIP_DEFLATED)
    assert_refused(small(seed=2), path, "is packed in it")
    write_torch(path, [1, 2])
    assert_refused(small(seed=2), path, "has no tensors by name")
    write_torch(path, {"epoch": 1})
    assert_refused(small(seed=2), path, "and it has epoch")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("net/data.pkl", b"")
        file.writestr("net/constants.pkl", b"")
    assert_refused(small(seed=2), path, "is a program of TorchScript")
    path.write_bytes(pickled({"blobs": 1}))
    assert_refused(small(seed=2), path, "not one of torch.save")


def test_folders_of_older_models_have_a_file_of_torch(state, tmp_path):
    folder = tmp_path / "net"
    os.mkdir(folder)
    write_torch(folder / "pytorch_model.bin", state)
    assert find_weights(str(folder)).path == folder / "pytorch_model.bin"
