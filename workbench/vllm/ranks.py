"""A model over several processes: beside this one a process for each further rank, given every request and hook.

vLLM's external launcher has one worker in each process, and processes that are given the same requests in the same
order compute together. So hooks act in each of them on its own copy of what passes: resid_post, attn_out and mlp_out
are whole on every rank of tensor parallelism. What is read comes from this process, rank 0; what another stage of a
pipeline holds comes from there (:mod:`workbench.vllm.stages`).

Calls go pickled through a pipe from this process to its own children, and what they saw comes back through another;
nothing is unpickled from a file or a socket.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.engine.dispatch import SiteHook
from workbench.engine.template_tokens import TemplateTokens
from workbench.errors import NotSupported, UserError
from workbench.models.origin import Origin
from workbench.vllm.stages import Sight

LAUNCHER = {"distributed_executor_backend": "external_launcher"}
"""What ``vllm.LLM`` is told of more than one rank."""
FURTHER_RANK = "workbench.vllm.further_rank"
GRACE = 10.0
"""Seconds in which a call that lost a rank may fail by itself, before this process ends: it would wait for ever."""


@dataclass(frozen=True)
class Call:
    """One call of the engine, as every rank makes it. ``hooks``: row -> its hooks; the rest as a tap has it."""

    role: str
    rows: Sequence[Sequence[int]]
    sampling: Mapping[str, Any]
    template: TemplateTokens | None = None
    hooks: Mapping[int, Sequence[SiteHook]] = field(default_factory=dict)
    prompt_lengths: Mapping[int, int] = field(default_factory=dict)
    wanted: Mapping[int, int] = field(default_factory=dict)
    warp: Any = None


class Ranks:
    """Ranks 1, 2, ... of one engine on this machine; they end with this object or with this process."""

    def __init__(self, origin: Origin, settings: Mapping[str, Any]) -> None:
        self.size = rank_count(settings)
        self._port = _free_port()
        self._lost = self._calling = self._closing = False
        self._processes = [self._started(rank, origin, settings) for rank in range(1, self.size)]
        self._reporting = [self._processes[rank - 1] for rank in reporting_ranks(settings)]
        for process in self._processes:
            threading.Thread(target=self._watch, args=(process,), daemon=True).start()

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Inside, an engine that is made here becomes rank 0 of them."""
        meet_at_own_port()
        wanted = _rank_environment(0, self.size, self._port)
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            with self._under_way():
                yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})

    @contextmanager
    def taking_part(self, call: Call) -> Iterator[None]:
        """Inside, this process makes ``call`` too.

        Raises:
            NotSupported: A hook cannot be sent to another process.
            UserError: A rank has ended.
        """
        message = _packed(call)
        try:
            for process in self._processes:
                assert process.stdin is not None
                process.stdin.write(message)
                process.stdin.flush()
        except OSError as error:
            raise UserError(self._ended()) from error
        with self._under_way():
            yield

    def sights(self) -> list[Sight]:
        """What later stages saw in the call that this process made last."""
        try:
            return [pickle.load(process.stdout) for process in self._reporting if process.stdout is not None]
        except EOFError as error:
            raise UserError(self._ended()) from error

    def close(self) -> None:
        """End them."""
        self._closing = True
        for process in self._processes:
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        for segment in Path("/dev/shm").glob(f"{self._port}-*"):  # of a rank that had no time to
            segment.unlink(missing_ok=True)

    def _started(self, rank: int, origin: Origin, settings: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ, **_rank_environment(rank, self.size, self._port), "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", FURTHER_RANK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert process.stdin is not None
        process.stdin.write(pickle.dumps((origin, dict(settings))))
        process.stdin.flush()
        return process

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        if self._lost:
            raise UserError(self._ended())
        self._calling = True
        try:
            yield
        except UserError:
            raise  # of a hook, which the other ranks had too
        except BaseException as error:  # they may be in a collective that this process left
            lost = self._lost  # before they are ended: then this is the connection that a lost rank leaves behind
            self.close()
            if lost and isinstance(error, RuntimeError):
                raise UserError(self._ended()) from error
            raise
        finally:
            self._calling = False

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._lost = True
        if self._closing or not self._calling:
            return
        threading.Event().wait(GRACE)
        if self._calling and not self._closing:  # in a collective that nobody ends, where no exception reaches it
            sys.stderr.write(f"Error: {self._ended()}\n")
            sys.stderr.flush()
            os._exit(1)

    def _ended(self) -> str:
        codes = [process.poll() for process in self._processes]
        ended = ", ".join(
            f"rank {rank} with exit code {code}" for rank, code in enumerate(codes, 1) if code is not None
        )
        return (
            f"A process of the model that vLLM holds in several has ended ({ended or 'just now'}; what it said is "
            "above): open the engine again, with a smaller max_model_len or max_num_seqs if memory ran out."
        )


def rank_count(settings: Mapping[str, Any]) -> int:
    """Processes of an engine with these settings."""
    return int(settings.get("tensor_parallel_size", 1)) * int(settings.get("pipeline_parallel_size", 1))


def reporting_ranks(settings: Mapping[str, Any]) -> range:
    """The first rank of every stage but the first, which report to rank 0 what their stage saw."""
    step = int(settings.get("tensor_parallel_size", 1))
    return range(step, rank_count(settings), step)


def meet_at_own_port() -> None:
    """Let the ranks of an engine meet at their own port, from which vLLM names the memory that they share on a CPU.

    Its launcher's own name is the same for all engines of a machine, so that two would share it, and what one that was
    killed leaves behind would keep the next from starting.
    """
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher

    def arguments(_executor: Any) -> tuple[str, int, int]:
        address = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        return address, int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])

    ExecutorWithExternalLauncher._distributed_args = arguments


def _packed(call: Call) -> bytes:
    import cloudpickle  # comes with vLLM

    try:
        packed: bytes = cloudpickle.dumps(call)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise NotSupported(
            f"A hook cannot be sent to the other ranks ({error}): leave tensor_parallel_size and "
            "pipeline_parallel_size at 1 for it."
        ) from error
    return packed


def _rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
