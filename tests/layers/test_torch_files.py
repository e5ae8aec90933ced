"""Files of torch.save, read without torch and without running code."""

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
from weight_models import assert_load_fails, assert_same_weights, small

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
    """Returns {torch's name: array} of `small()`, with torch's counter."""
    save_safetensors(small(), tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    return {**tensors, "bn1.num_batches_tracked": np.array(3, "i8")}


@pytest.mark.parametrize("write", WRITE)
@pytest.mark.parametrize("name", ["m.pth", "m.pt", "m.th", "m.pth.tar", "m"])
def test_torch_files_load(write, name, state, tmp_path):
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
def test_state_dicts_are_found_in_checkpoints(
    write, wrap, prefix, state, tmp_path
):
    other = {n: np.ones_like(array) for n, array in state.items()}
    content = wrap(state, other)
    content["optimizer"] = {"state": {"0": np.zeros(3, "f4")}, "groups": [None]}
    write(tmp_path / "m.pth", content)
    model = small(seed=2)
    loaded = load_weights(model, tmp_path / "m.pth")
    assert loaded.notes == (f"tensor names have the prefix {prefix!r}",)
    assert_same_weights(model, small())
    assert read_num_classes(tmp_path / "m.pth") == 7


@pytest.mark.parametrize("write", WRITE)
def test_tensors_with_other_memory_layouts_load(write, state, tmp_path):
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
        (touch, "needs posix.system beside tensors, which may run code"),
        (lambda path: Call("builtins\neval", "1"), "needs builtins.eval"),
        (lambda path: Name("argparse\nNamespace"), "argparse.Namespace"),
        (
            lambda path: Call("torch.nn.modules.linear\nLinear"),
            "torch.nn.modules.linear.Linear",
        ),
        # A type is not a function.
        (
            lambda path: Call("torch\nFloatStorage", 10**9),
            "needs a call of a created object",
        ),
    ],
)
def test_files_that_would_run_code_are_rejected(
    write, make, expected, state, tmp_path
):
    path, proof = tmp_path / "m.pth", tmp_path / "proof"
    write(path, {"state_dict": state, "args": make(proof)})
    assert_load_fails(small(seed=2), path, expected)
    with pytest.raises(WeightsError, match="If you trust the file"):
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
        # A key of nested tuples, which takes years to hash.
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
    assert_load_fails(small(), path, f"{path}: ")
    if code.startswith(b"\x80"):
        path.write_bytes(code)
        assert_load_fails(small(), path, f"{path}: ")


def test_allowed_functions_are_all_in_this_library():
    # They only create containers and descriptions of tensors.
    modules = {getattr(f, "__module__", None) for f in FUNCTIONS.values()}
    assert modules == {"resnet_layers.weights.pickles"}


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(1, (8,), (1,)), (0, (3, 3), (3, 1)), (-1, (2,), (1,)), (7, (2,), (-1,))],
)
@pytest.mark.parametrize("write", WRITE)
def test_tensors_cannot_exceed_their_storage(
    write, offset, shape, strides, tmp_path
):
    bias = Tensor(np.zeros(8, "f4"), offset, shape, strides)
    # Followed by the values of another tensor.
    write(tmp_path / "m.pth", {"fc.bias": bias, "x": np.zeros(100, "f4")})
    assert_load_fails(small(), tmp_path / "m.pth", "exceeds its storage")


@pytest.mark.parametrize("write", WRITE)
def test_truncated_files_are_rejected_in_one_line(write, state, tmp_path):
    path = tmp_path / "m.pth"
    write(path, state)
    content = path.read_bytes()
    for size in (len(content) // 2, len(content) - 30):
        path.write_bytes(content[:size])
        assert_load_fails(small(seed=2), path, "cannot be read")


def test_files_without_a_state_dict_are_rejected(state, tmp_path):
    path = tmp_path / "m.pth"
    write_torch(path, state, zipfile.ZIP_DEFLATED)
    assert_load_fails(small(seed=2), path, "is compressed")
    write_torch(path, [1, 2])
    assert_load_fails(small(seed=2), path, "no named tensors found, only list")
    write_torch(path, {"epoch": 1})
    assert_load_fails(small(seed=2), path, "only epoch")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("net/data.pkl", b"")
        file.writestr("net/constants.pkl", b"")
    assert_load_fails(
        small(seed=2), path, "TorchScript programs are unsupported"
    )
    path.write_bytes(pickled({"blobs": 1}))
    assert_load_fails(small(seed=2), path, "that torch.save did not write")


def test_pytorch_model_bin_is_found_in_a_folder(state, tmp_path):
    folder = tmp_path / "net"
    os.mkdir(folder)
    write_torch(folder / "pytorch_model.bin", state)
    assert find_weights(str(folder)).path == folder / "pytorch_model.bin"
