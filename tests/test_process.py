"""AMX without tile sizes, other Keras backends, and TensorFlow's log."""

import json
import os
import platform
import re
import struct
import subprocess
import sys

import keras
import PIL.Image
import pytest
import tensorflow as tf

from resnet_layers import check_backend
from train_loop import process
from train_loop.process import (
    ALL_BUT_AMX,
    AMX_NOTE,
    INSTRUCTIONS,
    amx_was_masked,
    avoid_broken_amx,
    read_cpuid,
    read_cpuinfo,
    use_tensorflow_backend,
)

AMX = "vendor_id\t: GenuineIntel\nflags\t\t: fpu amx_bf16 amx_tile amx_int8\n"
# CPUID of Intel's Sapphire Rapids: palette 1 has 8 tiles of 16 rows of 64
# bytes, 8 KiB together.
LEAVES = {
    (0, 0): (0x20, 0x756E6547, 0x6C65746E, 0x49656E69),
    (0x1D, 0): (1, 0, 0, 0),
    (0x1D, 1): (0x0400_2000, 0x0008_0040, 16, 0),
}
HIDDEN = [
    {(0x1D, 0): (0, 0, 0, 0), (0x1D, 1): (0, 0, 0, 0)},
    {(0x1D, 1): (0, 0, 0, 0)},
    {(0x1D, 0): (0, 0, 0, 0)},
    {(0, 0): (0x1C, 0x756E6547, 0x6C65746E, 0x49656E69)},
]


def variables(cpuinfo, leaves, **variables):
    """Returns the environment variables that are set on such a machine."""
    avoid_broken_amx(variables, cpuinfo, lambda *leaf: leaves[leaf])
    return variables


@pytest.mark.parametrize("hidden", HIDDEN)
def test_amx_is_disabled_without_tile_sizes(hidden):
    avoided = {INSTRUCTIONS: ALL_BUT_AMX}
    assert variables(AMX, LEAVES | hidden) == avoided


def test_amx_is_used_with_tile_sizes():
    assert variables(AMX, LEAVES) == {}


@pytest.mark.parametrize("cpuinfo", ["", AMX.replace("amx_tile", "avx2")])
def test_cpuid_is_not_read_without_amx(cpuinfo):
    assert variables(cpuinfo, leaves={}) == {}


def test_explicit_environment_variable_stays():
    own = {INSTRUCTIONS: "DEFAULT"}
    assert variables(AMX, LEAVES | HIDDEN[0], **own) == own


def test_amx_is_disabled_without_executable_memory(monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(process.mmap, "mmap", refuse)
    found = {}
    avoid_broken_amx(found, AMX, read_cpuid)
    assert found == {INSTRUCTIONS: ALL_BUT_AMX}


@pytest.mark.parametrize(
    ("leaves", "value", "masked"),
    [
        (LEAVES | HIDDEN[0], ALL_BUT_AMX, True),
        (LEAVES | HIDDEN[0], "DEFAULT", False),
        (LEAVES, ALL_BUT_AMX, False),
    ],
)
def test_note_is_shown_only_where_amx_was_disabled(
    monkeypatch, leaves, value, masked
):
    monkeypatch.setenv(INSTRUCTIONS, value)
    monkeypatch.setattr(process, "read_cpuinfo", lambda: AMX)
    monkeypatch.setattr(process, "read_cpuid", lambda *leaf: leaves[leaf])
    assert amx_was_masked() == masked
    assert f"({INSTRUCTIONS}={ALL_BUT_AMX})" in AMX_NOTE
    assert "\n" not in AMX_NOTE


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="The code is for Linux on x86-64.",
)
def test_cpuid_returns_the_vendor():
    vendor = re.search(r"vendor_id\s*: (\w+)", read_cpuinfo())[1]
    _, ebx, ecx, edx = read_cpuid(0, 0)
    assert struct.pack("<3I", ebx, edx, ecx).decode() == vendor
    # The subleaf is passed too: leaf 0xD has the size of all state in its
    # subleaf 0 and of one component, AVX's 256 bytes, in its subleaf 2.
    assert read_cpuid(0xD, 2)[0] == 256


@pytest.mark.parametrize(
    ("variables", "config", "found"),
    [
        ({}, None, []),
        ({"KERAS_BACKEND": "tensorflow"}, {"backend": "jax"}, []),
        ({"KERAS_BACKEND": "jax"}, {"backend": "jax"}, ["KERAS_BACKEND=jax"]),
        ({"KERAS_BACKEND": ""}, {"backend": "torch"}, ["backend=torch in "]),
        ({"TF_USE_LEGACY_KERAS": "1"}, None, ["TF_USE_LEGACY_KERAS=1"]),
        ({"TF_USE_LEGACY_KERAS": "0"}, None, []),
        (
            {},
            {"floatx": "float16", "image_data_format": "channels_first"},
            ["floatx=float16 in ", "image_data_format=channels_first in "],
        ),
        ({}, "not a dictionary", []),
    ],
)
def test_keras_uses_tensorflow_whatever_the_environment(
    variables, config, found, tmp_path
):
    if config:
        (tmp_path / "keras.json").write_text(json.dumps(config))
    variables["KERAS_HOME"] = str(tmp_path)
    notes = use_tensorflow_backend(variables)
    assert len(notes) == len(found)
    assert all(map(str.startswith, notes, found))
    assert variables["KERAS_BACKEND"] == "tensorflow"
    assert variables.get("TF_USE_LEGACY_KERAS", "0") == "0"


@pytest.mark.slow
def test_tensorflow_is_imported_after_setup_and_silently(tmp_path):
    """But for one, where Keras would have run on something else.

    Nor does Pillow say a word of a damaged file, or matplotlib of how long its
    fonts take.
    """
    (tmp_path / "keras.json").write_text(json.dumps({"floatx": "float16"}))
    path = tmp_path / "cat.tiff"
    PIL.Image.new("RGB", (40, 40)).save(path)
    path.write_bytes(path.read_bytes()[:100])
    script = f"""
import logging, os, runpy, sys
os.environ.pop({INSTRUCTIONS!r}, None)
module = runpy.run_path({process.__file__!r})
assert "tensorflow" not in sys.modules

def hides_tiles(*_):
    return "tensorflow" not in sys.modules

module["prepare"].__globals__["hides_tiles"] = hides_tiles
module["prepare"]()
assert "tensorflow" not in sys.modules
module["import_tensorflow"]()
module["import_tensorflow"]()
assert "tensorflow" in sys.modules
import tensorflow as tf
print(os.environ[{INSTRUCTIONS!r}])
print(tf.keras.config.backend(), tf.keras.config.floatx())
from train_loop.data import decode
logging.getLogger("matplotlib.font_manager").warning("building a cache")
try:
    decode._decode_by_pillow(open({str(path)!r}, "rb").read())
except ValueError:
    print("Errors are seen again.", file=sys.stderr)
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_HOME": str(tmp_path)},
    )
    assert result.stdout.splitlines() == [ALL_BUT_AMX, "tensorflow float32"]
    warning, last = result.stderr.splitlines()
    assert warning.startswith(f"warning: floatx=float16 in {tmp_path}")
    assert last == "Errors are seen again."


@pytest.mark.parametrize(
    ("module", "version", "expected"),
    [
        (keras, "2.15.0", "keras==2.15.0: must be 3.10 or later. Run: pip "),
        (keras, "3.9.2", "keras==3.9.2: must be 3.10 or later. Run: pip ins"),
        (tf, "2.16.1", "tensorflow==2.16.1: must be 2.18 or later. Run: pip"),
    ],
)
def test_layers_reject_earlier_versions(module, version, expected, monkeypatch):
    monkeypatch.setattr(module, "__version__", version)
    with pytest.raises(ImportError, match=re.escape(expected)):
        check_backend()


@pytest.mark.parametrize(
    "version", ["3.10.0", "3.15.1", "3.16.0.dev2026", "4.0.0"]
)
def test_layers_accept_later_versions(version, monkeypatch):
    monkeypatch.setattr(keras, "__version__", version)
    check_backend()


def test_version_errors_are_those_of_the_program(monkeypatch):
    monkeypatch.setattr(keras, "__version__", "3.9.2")
    monkeypatch.delitem(sys.modules, "resnet_layers")
    with pytest.raises(process.UserError, match=r"^keras==3.9.2: must be"):
        process.import_tensorflow()


def test_cores_are_counted_without_affinity(monkeypatch):
    """As on macOS."""
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert process.count_cores() == 7


def test_layers_reject_another_keras_backend(monkeypatch):
    check_backend()
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ImportError, match="Keras backend=jax: must be tens"):
        check_backend()


def test_layers_reject_keras_2(monkeypatch):
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    with pytest.raises(ImportError, match="TF_USE_LEGACY_KERAS=1: must be"):
        check_backend()
