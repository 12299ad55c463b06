"""The Ray cluster itself: found or started, and how many workers it has room for; no models, no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from workbench.errors import MissingExtra, UserError


def ray_module() -> Any:
    """``ray``. Raises :class:`UserError` where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # workers without a GPU see none; no warning
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("Sharing work out over a Ray cluster", "ray") from error
    return ray


@contextmanager
def cluster(ray: Any) -> Iterator[None]:
    """The cluster that is there (``RAY_ADDRESS``, ``ray.init``), else one of this machine, for as long as needed."""
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def room_for(workers: int | None) -> Iterator[None]:
    """A cluster with room for ``workers``, to be entered before models are loaded; nothing where None is wanted.

    Raises:
        UserError: Ray is missing, or the cluster is too small.
    """
    if workers is None:
        yield
        return
    ray = ray_module()
    with cluster(ray):
        size_of(ray, workers)
        yield


def size_of(ray: Any, workers: int | None) -> tuple[bool, int]:
    """Whether workers get a GPU each, and how many there are."""
    there = ray.cluster_resources()
    has_gpu = there.get("GPU", 0) >= 1
    most = int(there.get("GPU" if has_gpu else "CPU", 1))
    if workers is not None and not 1 <= workers <= most:
        raise UserError(
            f"{workers} workers were asked for and the cluster has {most} {'GPUs' if has_gpu else 'CPUs'}, one for "
            f"each worker: give 1 to {most}."
        )
    return has_gpu, workers or most
