"""How work is spread: one mesh of every device, one axis. Nothing else in fairjax spreads it.

Where several hosts have joined (`fairjax.cluster`), each runs the same program on the same values, and only the first
writes files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import math
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import mesh_utils, multihost_utils
from jax.experimental.compilation_cache import compilation_cache
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fairjax.program import UserError, blame

AXIS = "data"

_COMPILED_BYTES = 4 << 30
"""What compiled programs may take on disk; those not used for longest go first."""

_PUBLISHED = {"TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v5p": 95, "TPU v6 lite": 32}
"""GiB of memory of a chip, by its kind: v4, v5e, v5p (under two names) and v6e."""

_CHIPS = {"v4": {"chip_config_name": "megacore"}}
"""What libtpu must be told of a generation so that its devices are those of a real one: a v4's two cores are one."""

_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # fmt: skip
"""So that libtpu, where it only compiles, does not ask the network what machine this is, nor keeps others from it."""

LOCK = ".lock"
"""In a folder that a program has to itself while it runs; the file stays."""

_LONGEST_PROBLEM = 2_000  # bytes, of what the first host tells the others

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""What file systems say that have none."""

REPLICATED, SPREAD = PartitionSpec(), PartitionSpec(AXIS)


def prepare() -> None:
    """Makes a device of every CPU core, and keeps compiled programs on disk, as the programs of fairjax do.

    For scripts and notebooks, where nothing of JAX's is set unasked: on a CPU steps of finetuning are about half as
    fast again, and what was compiled once is not compiled anew. May be called again.

    Raises:
        RuntimeError: one line, where JAX has started already, with another number of devices.
    """
    _split_cpu()
    _keep_compiled()


def _keep_compiled() -> None:
    """Programs are compiled once on a machine, into the user's cache folder, or JAX_COMPILATION_CACHE_DIR.

    How much may lie in the latter is for whoever names it: other programs keep theirs there too, and what was kept
    without a limit has no time of its last use, for want of which jax 0.10 keeps nothing more where there is one.
    """
    usual: dict[str, Any] = {"jax_persistent_cache_min_compile_time_secs": 0.2}
    if not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fairjax" / "compiled"
        usual |= {"jax_compilation_cache_dir": str(home), "jax_compilation_cache_max_size": _COMPILED_BYTES}
        _mend_compiled(home)
    for name, value in usual.items():
        if not os.environ.get(name.upper()):
            jax.config.update(name, value)


def share_compiled() -> None:
    """Of several hosts, all have the folder of what is compiled in common, or none uses its own; all must ask.

    JAX writes there what the first host compiles, and each host reads for itself. On GPUs it must not be that one finds
    a program and the others do not: hosts share out what XLA tries to find the fastest kernels, and they would wait for
    its part (24 hours).
    """
    if not has_others():
        return
    folder = jax.config.jax_compilation_cache_dir or ""
    wanted, bucket = bool(folder) and jax.config.jax_enable_compilation_cache, "://" in folder
    jax.config.update("jax_enable_compilation_cache", False)  # also for what the hosts tell each other by
    with contextlib.ExitStack() as stack:
        token = None
        if is_first() and wanted and not bucket:
            with contextlib.suppress(OSError):
                Path(folder).mkdir(parents=True, exist_ok=True)
                token = stack.enter_context(tempfile.NamedTemporaryFile(prefix=".seen-by-all-", dir=folder)).name
        token = told_by_first(token and Path(token).name)
        seen = bucket or (token is not None and (Path(folder) / token).exists())
        kept = not any_of_all(not (wanted and seen))
    if wanted and not kept and is_first():
        told = "not every host sees the folder of what is compiled, so nothing is kept there: set "
        print(f"{told}JAX_COMPILATION_CACHE_DIR to one that all share", file=sys.stderr, flush=True)
    jax.config.update("jax_enable_compilation_cache", kept)
    jax.config.update("jax_compilation_cache_max_size", -1)  # with a limit, who waits long for the others finds nothing
    compilation_cache.reset_cache()  # it would stand by its first answer


def _mend_compiled(folder: Path) -> None:
    """Gives what was compiled by a program that was killed between an entry and its time the oldest time there is."""
    with contextlib.suppress(OSError):  # of another user, say: JAX warns
        for entry in folder.glob("*-cache"):
            last_used = entry.with_name(f"{entry.name.removesuffix('-cache')}-atime")
            if not last_used.exists():
                last_used.write_bytes(bytes(8))


def _split_cpu(limit: int = 8) -> None:
    """Makes a device of every CPU core (a power of two of them), where no number is set yet and JAX has not started.

    One program that shares a batch between two cores runs at one and a half times the speed of one that shares each
    convolution between them; accelerators are not touched. Results do not depend on the number of devices.
    """
    flag, number = "xla_force_host_platform_device_count", jax.config.jax_num_cpu_devices  # -1 where none is set
    if flag in os.environ.get("XLA_FLAGS", "") or number > 0:
        return
    cores = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, limit)
    try:
        jax.config.update("jax_num_cpu_devices", 1 << (cores.bit_length() - 1))
    except RuntimeError:
        raise RuntimeError("fairjax.prepare() must be called before JAX computes anything; it has started") from None


def mesh(num_devices: int | None = None) -> jax.sharding.Mesh:
    """Every device of every host in one row, or the first `num_devices` of them."""
    devices = jax.devices()[:num_devices]
    slices = len({device.slice_index for device in devices}) if devices[0].platform == "tpu" else 1
    if slices > 1:  # which `make_mesh`, for one grid of chips, does not know
        row = mesh_utils.create_hybrid_device_mesh((len(devices) // slices,), (slices,), devices)
        return jax.sharding.Mesh(row, (AXIS,), axis_types=(AxisType.Auto,))
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def mesh_of(topology: str) -> jax.sharding.Mesh:
    """The chips of TPUs that are not here, in one row: to compile for, by the `libtpu` package.

    Args:
        topology: generation and grid, such as v5e:4x4.

    Raises:
        ValueError: one line, where there is no such one, none whose memory is known, or no libtpu.
    """
    from jax.experimental import topologies

    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    try:
        chips = _CHIPS.get(topology.partition(":")[0], {})
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **chips).devices
    except Exception as error:  # libtpu has its own kinds
        missing = " (pip install libtpu)" if importlib.util.find_spec("libtpu") is None else ""
        raise ValueError(f"no TPUs {topology!r}: {str(error).splitlines()[0]}{missing}") from None
    if (kind := devices[0].device_kind) not in _PUBLISHED:
        raise ValueError(f"TPUs {topology!r}: the memory of a {kind} is not known; that of v4, v5e, v5p and v6e is")
    return jax.sharding.Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


@contextlib.contextmanager
def hastily() -> Iterator[None]:
    """Programs are compiled with little optimisation: to ask what memory they take, not to be run.

    For a TPU, a tenth of the time; the memory is the same within a percent (benchmarks/RESULTS.md).
    """
    usual = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", "O0")
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", usual)


def memory_left(mesh: jax.sharding.Mesh) -> int | None:
    """Bytes of each device's memory that are free, the least of all hosts; None where a CPU takes what it wants.

    Raises:
        UserError: one line, where the devices do not say.
    """
    if (device := mesh.devices.flat[0]).platform == "cpu":
        return None
    if device not in jax.devices():  # of a topology
        return _PUBLISHED[device.device_kind] << 30
    stats = mesh.local_devices[0].memory_stats() or {}
    if "bytes_limit" not in stats:  # XLA_PYTHON_CLIENT_ALLOCATOR=platform
        problem = "the devices do not say how much memory they have, as with XLA_PYTHON_CLIENT_ALLOCATOR=platform"
        raise UserError(f"{problem}: give training.microbatch and evaluation.batch_size")
    left = stats["bytes_limit"] - stats["bytes_in_use"]
    # in MiB: what hosts tell each other goes over devices, whose integers have 32 bits
    return left if not has_others() else int(_of_all(np.int32(left >> 20)).min()) << 20


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Makes a folder, and keeps other programs that ask for the same out of it; the first host does so for all.

    However this program ends, the system lets the next one in.

    Raises:
        UserError: the folder cannot be made, or another program is in it.
    """
    file, problem = None, None
    if is_first():
        try:
            file = _locked(folder)
        except UserError as error:
            problem = str(error)
    if problem := told_by_first(problem):
        raise UserError(problem)
    with file or contextlib.nullcontext():
        yield


def _locked(folder: Path) -> IO[str]:
    """The lock of a folder, which lasts while it is open."""
    subject = f"output = {str(folder)!r}"
    with blame(subject):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(f"{subject}: another program is at work in it") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                file.close()
                raise
        return file


def peak_memory() -> int:
    """The most bytes that a device of this host has had in use, or this process where devices do not count them."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    unit = 1 if sys.platform == "darwin" else 1024
    return max(peaks) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def spread(function: Callable[..., Any], mesh: jax.sharding.Mesh, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function`, written for one device over `AXIS`, as one jitted program over all of them."""
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False))


def replicate(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """A copy of the tree on every device; each host has the whole of it."""
    return _place(tree, NamedSharding(mesh, REPLICATED))


def as_placed(values: np.ndarray, like: Any) -> Any:
    """The values on the devices where `like` is, if it is on devices."""
    return _place(values, like.sharding) if isinstance(like, jax.Array) else values


def filled(rows: np.ndarray, mesh: jax.sharding.Mesh, size: int = 0) -> np.ndarray:
    """`rows` and its last row again, up to a multiple of the devices, `size` rows at least: one program serves all."""
    count = -(-max(len(rows), size) // mesh.size) * mesh.size
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])


def share_out(batch: Any, mesh: jax.sharding.Mesh) -> Any:
    """The examples of a batch (leading axis of every leaf), dealt out over the devices; each host has all of them."""
    return _place(batch, NamedSharding(mesh, SPREAD))


def _place(tree: Any, sharding: NamedSharding) -> Any:
    if not has_others():
        return jax.device_put(tree, sharding)

    def place(leaf: Any) -> jax.Array:  # and sends nothing: `device_put` would compare the hosts' values each time
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf  # of all hosts already
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", np.dtype(float)), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(place, tree)


def shapes(tree: Any, mesh: jax.sharding.Mesh, where: PartitionSpec = REPLICATED) -> Any:
    """The tree as `jax.ShapeDtypeStruct`s, placed as `replicate` does it, or with `where=SPREAD` as `share_out` does.

    To lower a program with. Leaves are arrays, or shapes already.
    """
    there = NamedSharding(mesh, where)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=there), tree)


def fetch(values: jax.Array) -> np.ndarray:
    """The whole of an array on this host; all hosts must ask for it, where each has a part."""
    if values.is_fully_addressable or values.is_fully_replicated:
        return np.asarray(values)
    return multihost_utils.process_allgather(values, tiled=True)


def is_first() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return jax.process_index() == 0


def has_others() -> bool:
    """Whether this is one of several processes."""
    return jax.process_count() > 1


def wait_for_all(where: str) -> None:
    """Returns when every process has come to this place of the program."""
    if has_others():
        multihost_utils.sync_global_devices(where)


def any_of_all(flag: bool) -> bool:
    """Whether it is so on any host; all must ask."""
    return flag if not has_others() else bool(_of_all(np.int32(flag)).any())


def told_by_first(problem: str | None) -> str | None:
    """What the first host tells all of them, who must all ask: what went wrong there, None where nothing did."""
    if not has_others():
        return problem
    letters = np.zeros(_LONGEST_PROBLEM, np.uint8)
    text = (problem or "").encode()[:_LONGEST_PROBLEM]
    letters[: len(text)] = np.frombuffer(text, np.uint8)
    return bytes(_of_all(letters)[0]).rstrip(b"\0").decode(errors="replace") or None


def _of_all(values: np.ndarray | np.integer) -> np.ndarray:
    """[hosts, ...], in their order."""
    return multihost_utils.process_allgather(values)


def local_images(num_images: int) -> jax.Array:
    """Inside a spread function: the numbers of this device's share of `num_images` images, [num_images / devices].

    Shares follow each other, and need not end where a prompt's images end.
    """
    share = num_images // lax.axis_size(AXIS)
    return lax.axis_index(AXIS) * share + np.arange(share)


def gather(values: jax.Array) -> jax.Array:
    """[n, ...] on each device -> [n * devices, ...] on all, in the order of the images."""
    return lax.all_gather(values, AXIS, tiled=True)


def own_groups(groups: int, size: int) -> tuple[jax.Array, int, jax.Array]:
    """Inside a spread function: in which of `groups` groups, each of `size` images, this device's share lies.

    Returns:
        the first of them, how many they are at most, and the place of the share's first image among theirs.
    """
    share = groups * size // lax.axis_size(AXIS)
    start = lax.axis_index(AXIS) * share
    furthest = size - math.gcd(share, size)  # where in its first group a share may begin
    count = min(groups, -(-(furthest + share) // size))
    first = jnp.minimum(start // size, groups - count)
    return first, count, start - first * size


def mean(tree: Any) -> Any:
    """The mean over devices, of each device's own value: one reduction for the whole tree."""
    flat, restore = ravel_pytree(tree)
    return restore(lax.pmean(flat, AXIS))
