"""This process, or several on this machine, each with the model loaded once."""

from __future__ import annotations

import io
import multiprocessing as mp
import signal
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from lens_attr.runs.executors.deaths import Queue
from lens_attr.runs.ranks import own_gpu
from lens_attr.runs.shards import Record
from lens_attr.runs.worker import Answers, Setup, Work, Worker


def in_this_process(works: Iterable[Work], setup: Setup, model: Any) -> Answers:
    """Do one shard after the other."""
    worker = Worker(setup, model)
    for work in works:
        yield work, worker.do(work)


def in_processes(works: Iterable[Work], setup: Setup, workers: int) -> Answers:
    """Do the shards in processes of their own; what becomes of those that die, see `Queue`.

    Raises:
        LensAttrError: what a worker raised, or they die before they explain anything.
    """
    queue = Queue(works, setup)
    team = [_Member(setup, number) for number in range(workers)]
    try:
        for member in team:
            member.give(queue.next())
        while busy := [member for member in team if member.work is not None]:
            ready = wait([member.pipe for member in busy])
            for member in (m for m in busy if m.pipe in ready):
                answer = member.answer()
                if answer is None:
                    queue.put_back(member.died())
                else:
                    yield answer
                member.give(queue.next())
    finally:
        for member in team:
            member.stop()


@dataclass
class _Member:
    """One worker process, started when there is work for it, and anew when it dies."""

    setup: Setup
    number: int

    def __post_init__(self) -> None:
        self.work: Work | None = None
        self.process: BaseProcess | None = None

    def _start(self) -> None:
        context = mp.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        device = own_gpu(self.setup.job.device, self.number)
        setup = replace(self.setup, device=device, watched=True)
        self.process = context.Process(target=_main, args=(theirs, setup), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, work: Work | None) -> None:
        """Hand over the next shard, to a new process if the old one is gone."""
        self.work = work
        if work is None:
            return
        if self.process is None:
            self._start()
        try:
            self.pipe.send(work)
        except OSError:
            self._start()
            self.pipe.send(work)

    def answer(self) -> tuple[Work, Record | str] | None:
        """What became of the work; None if the process died over it.

        Raises:
            Exception: whatever the worker raised.
        """
        assert self.work is not None
        try:
            said = self.pipe.recv()
        except (EOFError, OSError):
            return None
        if isinstance(said, Exception):
            raise said
        return self.work, said

    def died(self) -> Work:
        """Clear up after the process; returns what it left undone."""
        assert self.work is not None
        self.stop()
        return self.work

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self.process is None:
            return
        self.pipe.close()
        self.process.kill()
        self.process.join()
        self.process = None


def _main(pipe: Connection, setup: Setup) -> None:
    """A worker process. It ends when its parent does, because the pipe ends then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        with redirect_stdout(io.StringIO()):  # model libraries print while they load
            worker = Worker(setup)
        while True:
            pipe.send(worker.do(pipe.recv()))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        pipe.send(error.with_traceback(None))
