"""Tensors are checked and read one at a time, in every format."""

import tracemalloc

import h5py
import numpy as np
import pytest
from applications import build_short, make_short_application
from weight_models import (
    OWN_READERS,
    assert_load_fails,
    assert_same_weights,
    assign_random,
    save_run,
    save_weights_h5,
    small,
    zero_kernels,
)

from resnet_layers import ResNet, load_weights, save_safetensors
from resnet_layers.weights import assign


def save_torch(model, folder):
    save_safetensors(model, folder / "model.safetensors")
    return folder / "model.safetensors"


FORMATS = (save_torch, *OWN_READERS)


def many(seed):
    """Returns (model of many small tensors, their size in bytes)."""
    model = small(seed, block="basic", width=64, stage_sizes=(8,))
    return model, sum(np.asarray(weight).nbytes for weight in model.weights)


def peak_of(function, *arguments):
    """Returns the peak memory of a second call, in bytes."""
    function(*arguments)
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("save", FORMATS)
def test_loading_reads_one_tensor_at_a_time(save, tmp_path):
    (theirs, size), (model, _) = many(1), many(2)
    path = save(theirs, tmp_path)
    # This includes the new weights of the model.
    assert peak_of(load_weights, model, path) < 1.5 * size
    assert_same_weights(model, theirs)


def test_saving_reads_one_tensor_at_a_time(tmp_path):
    model, size = many(1)
    assert peak_of(save_torch, model, tmp_path) < 0.5 * size


@pytest.mark.parametrize("save", FORMATS)
def test_names_and_shapes_are_checked_before_values_are_read(
    save, tmp_path, monkeypatch
):
    path = save(small(num_classes=3), tmp_path)

    def fail(*args):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(assign, "_read", fail)
    assert_load_fails(small(seed=2), path, ", and (")


@pytest.mark.slow
@pytest.mark.parametrize("save", FORMATS)
def test_late_read_error_leaves_the_model_unchanged(
    save, tmp_path, monkeypatch
):
    path = save(small(), tmp_path)
    open_tensors = assign.open_tensors

    def fail():
        raise OSError("Input/output error")

    def open_damaged(*args):
        dialect, tensors = open_tensors(*args)
        last = [*tensors][-1]
        tensors[last] = tensors[last]._replace(read=fail)
        return dialect, tensors

    monkeypatch.setattr(assign, "open_tensors", open_damaged)
    assert_load_fails(small(seed=2), path, "as weights (Input/output error)")


def test_hdf5_checksum_error_is_reported_in_one_line(tmp_path):
    path = save_weights_h5(small(), tmp_path)
    with h5py.File(path, "a") as file:
        group = file["head/vars"]
        values = group["0"][()]
        del group["0"]
        kernel = group.create_dataset(
            "0", data=values, chunks=values.shape, fletcher32=True
        )
        begin = kernel.id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[begin] ^= 255
    path.write_bytes(content)
    assert_load_fails(small(seed=2), path, "cannot be read")


def test_checkpoint_checksum_error_is_reported_in_one_line(tmp_path):
    path = save_run(small(), tmp_path)
    data = path / "checkpoints/ckpt-9.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[::1000] = bytes(len(content[::1000]))
    data.write_bytes(content)
    assert_load_fails(small(seed=2), path, "cannot be read as weights (ckpt-9")


@pytest.mark.slow
def test_keras_biases_are_folded_into_moving_means(tmp_path):
    theirs, ours = make_short_application("resnet50_keras"), None
    assign_random(theirs)
    theirs.save_weights(tmp_path / "model.weights.h5")
    ours = build_short("resnet50_keras")
    load_weights(ours, tmp_path / "model.weights.h5")
    mean = theirs.get_layer("conv3_block2_2_bn").moving_mean
    bias = theirs.get_layer("conv3_block2_2_conv").bias
    np.testing.assert_array_equal(
        ours.blocks[3].bn2.moving_mean, np.asarray(mean) - np.asarray(bias)
    )


@pytest.mark.slow
@pytest.mark.parametrize("save", FORMATS)
def test_all_replicas_get_the_weights(save, tmp_path, two_replicas):
    theirs = small()
    path = save(theirs, tmp_path)
    with two_replicas.scope(), zero_kernels():
        model = ResNet.from_config(theirs.get_config())
        model.build((None, 16, 16, 3))
    load_weights(model, path)
    for mine, read in zip(model.weights, theirs.weights, strict=True):
        for value in two_replicas.experimental_local_results(mine.value):
            np.testing.assert_array_equal(value, read, err_msg=mine.path)
