"""The process: its environment before TensorFlow is imported, and signals."""

import contextlib
import ctypes
import gc
import json
import logging
import mmap
import os
import pathlib
import select
import signal
import sys
import threading
import time

from train_loop.errors import UserError

# Settings of Keras that override those in keras.json.
KERAS_CONFIG = {
    "floatx": "float32",
    "epsilon": 1e-7,
    "image_data_format": "channels_last",
}

# Ignored settings of Keras and TensorFlow, as text.
overridden: list[str] = []

INSTRUCTIONS = "ONEDNN_MAX_CPU_ISA"
ALL_BUT_AMX = "AVX512_CORE_FP16"
AMX_NOTE = (
    "This machine reports AMX without its tile sizes. oneDNN runs without AMX "
    f"({INSTRUCTIONS}={ALL_BUT_AMX}), and bfloat16 is slower."
)

# void read(uint32 leaf, uint32 subleaf, uint32 registers[4])
# Linux passes arguments on x86-64 in edi, esi and rdx. cpuid overwrites rbx,
# which belongs to the caller.
_CPUID = bytes.fromhex(
    "53"  # push rbx
    "49 89 d0"  # mov r8, rdx
    "89 f8"  # mov eax, edi
    "89 f1"  # mov ecx, esi
    "0f a2"  # cpuid
    "41 89 00"  # mov [r8], eax
    "41 89 58 04"  # mov [r8 + 4], ebx
    "41 89 48 08"  # mov [r8 + 8], ecx
    "41 89 50 0c"  # mov [r8 + 12], edx
    "5b"  # pop rbx
    "c3"  # ret
)
_TILES = 0x1D

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NAMES = {signal.SIGINT: "Ctrl-C"}

# Signals within this time count as one: some senders signal a process and its
# group.
SECONDS_OF_ONE = 1.0
# Ends the thread that waits for signals.
NO_SIGNAL = 0
# Signals are per process, and so is this record.
_received: list[signal.Signals] = []


def prepare():
    """Makes oneDNN avoid broken AMX, and TensorFlow and matplotlib log less.

    Keras uses the TensorFlow backend, unless it is imported already.
    """
    # It logs its font caches.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    avoid_broken_amx(os.environ, read_cpuinfo(), read_cpuid)
    if "keras" not in sys.modules:
        overridden.extend(use_tensorflow_backend(os.environ))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def import_tensorflow():
    """Imports TensorFlow without the lines that its C++ code prints.

    It prints them before it reads TF_CPP_MIN_LOG_LEVEL.

    Raises:
      UserError: Keras cannot be imported in this environment, or a version
        is not supported.
    """
    try:
        if "tensorflow" not in sys.modules:
            _import_silently()
        import keras
    except (ImportError, TypeError, ValueError, AttributeError) as error:
        path, _ = _keras_json(os.environ)
        reason = " ".join(str(error).split())
        raise UserError(
            f"TensorFlow, Keras: cannot be imported ({reason}). Check {path} "
            "and the environment variables KERAS_*."
        ) from error
    try:
        # It checks the versions.
        import resnet_layers  # noqa: F401
    except ImportError as error:
        raise UserError(str(error)) from error
    if overridden:
        for name, value in KERAS_CONFIG.items():
            getattr(keras.config, f"set_{name}")(value)
        print(
            f"warning: {', '.join(overridden)}: ignored. This program requires "
            "Keras 3 on TensorFlow, with its own floatx, epsilon and image "
            "data format.",
            file=sys.stderr,
        )
        overridden.clear()


def _import_silently():
    was_enabled = gc.isenabled()
    # The import creates no garbage; collecting takes a fifth of its time.
    gc.disable()
    try:
        with silenced():
            import tensorflow  # noqa: F401
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def silenced():
    """Discards standard error of C++ and Python code.

    Errors still arrive as Python exceptions.
    """
    standard_error = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)


def use_tensorflow_backend(environment):
    """Selects Keras 3 and its TensorFlow backend, before Keras is imported.

    Args:
      environment: environment variables; changed in place.

    Returns:
      The ignored settings, as text.
    """
    found = []
    # The values that TensorFlow accepts as true.
    if environment.get("TF_USE_LEGACY_KERAS") in ("true", "True", "1"):
        found.append(
            f"TF_USE_LEGACY_KERAS={environment['TF_USE_LEGACY_KERAS']}"
        )
        del environment["TF_USE_LEGACY_KERAS"]
    path, config = _keras_json(environment)
    backend = environment.get("KERAS_BACKEND")
    if backend and backend != "tensorflow":
        found.append(f"KERAS_BACKEND={backend}")
    elif not backend and config.get("backend", "tensorflow") != "tensorflow":
        found.append(f"backend={config['backend']} in {path}")
    environment["KERAS_BACKEND"] = "tensorflow"
    found += [
        f"{name}={config[name]} in {path}"
        for name, value in KERAS_CONFIG.items()
        if config.get(name, value) != value
    ]
    return found


def _keras_json(environment):
    """Returns (path, content) of the file that Keras reads at import."""
    home = os.path.expanduser("~")
    if not os.access(home, os.W_OK):
        home = "/tmp"
    folder = environment.get("KERAS_HOME", os.path.join(home, ".keras"))
    path = pathlib.Path(folder, "keras.json").expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    return path, content if isinstance(content, dict) else {}


def amx_was_masked():
    """Returns whether AMX was disabled, see `AMX_NOTE`."""
    return os.environ.get(INSTRUCTIONS) == ALL_BUT_AMX and hides_tiles(
        read_cpuinfo(), read_cpuid
    )


def avoid_broken_amx(environment, cpuinfo, read):
    """Disables AMX in oneDNN on machines that hide its tile sizes.

    Some virtual machines report AMX and mask the CPUID leaf with the sizes.
    oneDNN then creates empty tiles, and the first larger bfloat16 product ends
    in an illegal instruction.

    Args:
      environment: environment variables; explicit values stay.
      cpuinfo: text of /proc/cpuinfo.
      read: see `read_cpuid`.
    """
    if INSTRUCTIONS not in environment and hides_tiles(cpuinfo, read):
        environment[INSTRUCTIONS] = ALL_BUT_AMX


def hides_tiles(cpuinfo, read):
    """Returns whether AMX is reported without its tile sizes.

    Args:
      cpuinfo: text of /proc/cpuinfo.
      read: see `read_cpuid`.
    """
    if "amx_tile" not in cpuinfo.split():
        return False
    try:
        # Above its highest leaf, a processor returns another leaf.
        highest_leaf = read(0, 0)[0]
        highest_palette = read(_TILES, 0)[0]
        sizes = read(_TILES, 1)[:3]
    except OSError:
        # Unknown. Avoiding working AMX costs bfloat16 some speed, which the
        # variable restores; using broken AMX kills the process.
        return True
    return highest_leaf < _TILES or highest_palette < 1 or 0 in sizes


def count_cores():
    """Returns the number of cores that this process may use."""
    # Linux limits processes to some cores; macOS does not.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_cpuinfo():
    """Returns the text of /proc/cpuinfo; "" without this file."""
    try:
        return pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def read_cpuid(leaf, subleaf):
    """Returns registers of the x86-64 instruction CPUID, on Linux.

    Returns:
      The registers (eax, ebx, ecx, edx) as ints.

    Raises:
      OSError: the kernel does not allow executable memory.
    """
    access = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    page = mmap.mmap(-1, len(_CPUID), prot=access)
    page.write(_CPUID)
    code = ctypes.c_char.from_buffer(page)
    registers = (ctypes.c_uint32 * 4)()
    uint32 = ctypes.c_uint32
    function = ctypes.CFUNCTYPE(None, uint32, uint32, ctypes.c_void_p)
    function(ctypes.addressof(code))(leaf, subleaf, ctypes.addressof(registers))
    return tuple(registers)


class StoppedError(Exception):
    """A signal requested the end of the program.

    Args:
      signal: a `signal.Signals`.
      *hints: how to resume.
    """

    def __init__(self, signal, *hints):
        name = NAMES.get(signal, signal.name)
        super().__init__("; ".join([f"stopped by {name}", *hints]))
        self.signal = signal

    @property
    def status(self):
        """Exit status, as shells report it."""
        return 128 + self.signal


@contextlib.contextmanager
def recording_signals():
    """Records signals for `received` instead of ending the process.

    A second signal ends it, see `exit_on_second_signal`. Outside of the main
    thread, where Python handles no signals, this does nothing.
    """
    handled = {}
    if threading.current_thread() is threading.main_thread():
        handled = {
            number: handler
            for number in SIGNALS
            if (handler := signal.getsignal(number)) != signal.SIG_IGN
        }

    def record(number, frame):
        if _received and _is_interactive(number):
            handled[number](number, frame)
        _received.append(signal.Signals(number))

    with exit_on_second_signal():
        for number in handled:
            signal.signal(number, record)
        try:
            yield
        finally:
            _received.clear()
            for number, handler in handled.items():
                signal.signal(number, handler)


def received():
    """Returns the first signal received; None without one."""
    return _received[0] if _received else None


def check():
    """Raises StoppedError after a signal."""
    if _received:
        raise StoppedError(_received[0])


@contextlib.contextmanager
def exit_on_second_signal():
    """Makes a second signal end the process at once.

    Python runs handlers when a C++ call returns, and a training step may take
    minutes, so a thread reads signals at once. In an interactive session,
    Python handles Ctrl-C: it ends the work, not the session.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    thread = threading.Thread(target=_watch, args=(arrived,), daemon=True)
    thread.start()
    previous = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        # A forked process may hold the pipe open.
        os.write(wakeup, bytes([NO_SIGNAL]))
        os.close(wakeup)
        thread.join()
        os.close(arrived)


def _watch(arrived):
    """Reads signal numbers; ends the process at the second request."""
    first = None
    while (number := os.read(arrived, 1)[0]) != NO_SIGNAL:
        if number not in SIGNALS or _is_interactive(number):
            continue
        now = time.monotonic()
        if first is None:
            first = now
        elif now - first >= SECONDS_OF_ONE:
            _end(signal.Signals(number))


def _end(number):
    """Ends the process with one line, without blocking."""
    line = f"error: ended at once by a second signal, {number.name}\n"
    with contextlib.suppress(OSError):
        _, writable, _ = select.select([], [2], [], 0)
        for stream in writable:
            os.write(stream, line.encode())
    os._exit(128 + number)


def _is_interactive(number):
    return number == signal.SIGINT and hasattr(sys, "ps1")
