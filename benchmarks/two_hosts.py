"""Patching over two hosts that are network namespaces of this machine, each with a Ray node: the bits of one process?

    sudo python benchmarks/two_hosts.py BASE TUNED PROMPTS.jsonl [--limit 12]

Needs root, ``ip netns`` and ray. Two namespaces are joined by a pair of virtual interfaces and by nothing else; each
starts a node of one CPU, so that two workers can only be one on each. Models are read from the disk that both see. All
that is made is taken away again.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

HOSTS = {"tunescope-a": "10.77.0.1", "tunescope-b": "10.77.0.2"}
PORT = 6399


def main() -> None:
    """Make the hosts, run the driver on the first, and print what it saw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "tuned", "prompts"):
        parser.add_argument(name)
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--driver", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.driver:
        print(json.dumps(compared(options.base, options.tuned, options.prompts, options.limit), indent=1))
        return
    # a cluster of several machines asks for a token, which all of them must have
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with hosts(), tempfile.TemporaryDirectory(prefix="ray") as folder, nodes(Path(folder)) as head:
        command = [sys.executable, __file__, *sys.argv[1:], "--driver"]
        on_host("tunescope-a", command, env={"RAY_ADDRESS": head})


@contextmanager
def hosts() -> Iterator[None]:
    """Two namespaces with an interface each, joined to one another."""
    with ExitStack() as stack:
        for name in HOSTS:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
        first, second = HOSTS
        ip("link", "add", "ts-a", "netns", first, "type", "veth", "peer", "name", "ts-b", "netns", second)
        for (name, address), link in zip(HOSTS.items(), ("ts-a", "ts-b"), strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            for device in ("lo", link):
                ip("-n", name, "link", "set", device, "up")
        yield


@contextmanager
def nodes(folder: Path) -> Iterator[str]:
    """A head on the first host and a worker node on the second, one CPU each; yields the head's address."""
    (first, head), (second, other) = HOSTS.items()
    shared = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=200000000", "--disable-usage-stats", "--block"]
    starts = [
        (first, ["--head", f"--port={PORT}", f"--node-ip-address={head}", f"--temp-dir={folder}",
                 "--include-dashboard=false"]),
        (second, [f"--address={head}:{PORT}", f"--node-ip-address={other}"]),
    ]  # fmt: skip
    ray = str(Path(sys.executable).with_name("ray"))
    with ExitStack() as stack:
        for name, options in starts:
            process = subprocess.Popen(
                ["ip", "netns", "exec", name, ray, "start", *options, *shared], stdout=subprocess.DEVNULL
            )
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)
            if name == first:
                wait_for(name, head)
        yield f"{head}:{PORT}"


def wait_for(name: str, address: str) -> None:
    """Until the head answers, which the other node asks at once."""
    question = f"import socket; socket.create_connection(({address!r}, {PORT}), 2)"
    for _ in range(60):
        command = ["ip", "netns", "exec", name, sys.executable, "-c", question]
        if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(1)
    raise SystemExit("The head of the cluster did not come up.")


def on_host(name: str, command: list[str], env: dict[str, str]) -> None:
    """Run a command in a namespace."""
    subprocess.run(["ip", "netns", "exec", name, *command], check=True, env={**os.environ, **env})


def ip(*words: str) -> None:
    """iproute2."""
    subprocess.run(["ip", *words], check=True)


def joined(address: str) -> list[str]:
    """Connect to the cluster once both nodes are in it; their addresses."""
    import ray

    for _ in range(90):
        with suppress(ConnectionError):
            if not ray.is_initialized():
                ray.init(address, log_to_driver=False)
            alive = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
            if len(alive) == len(HOSTS):
                return alive
        time.sleep(1)
    raise SystemExit("The two nodes did not find one another.")


def compared(base: str, tuned: str, prompts: str, limit: int) -> dict[str, Any]:
    """Patching by this process alone and by two workers, and where these were."""
    import torch

    import probes
    import workbench as wb
    from workbench.cluster.splitting import RunsHereWarning, in_parts

    machines = joined(os.environ["RAY_ADDRESS"])
    torch.set_num_threads(1)
    warnings.simplefilter("error", RunsHereWarning)
    pair, rows = wb.load_pair(base, tuned, device="cpu"), wb.Prompts.load(prompts)[:limit]
    options: dict[str, Any] = {"metric": "kl", "batch_size": 4, "normalise": False, "draws": 50}
    alone = probes.patching(pair, rows, **options)
    where: list[str] = []
    with wb.on_ray(pair, workers=2):
        in_parts(_address, list(range(4)), lambda _part, address: where.append(address))
        shared = probes.patching(pair, rows, **options)
    cells = alone.table.select_dtypes("number").to_numpy()
    return {
        "hosts": machines, "parts ran on": sorted(set(where)), "prompts": len(rows), "cells": len(alone.table),
        "largest difference": float(abs(cells - shared.table.select_dtypes("number").to_numpy()).max()),
        "bit for bit": bool(alone.table.equals(shared.table) and alone.effects.tobytes() == shared.effects.tobytes()),
    }  # fmt: skip


def _address(_part: int) -> str:
    import ray

    return str(ray.util.get_node_ip_address())


if __name__ == "__main__":
    main()
