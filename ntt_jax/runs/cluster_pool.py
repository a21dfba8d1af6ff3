"""Hands groups of work to workers that may die, and to those that come later.

A group belongs to no worker until it is sent, and only to one that has begun: a worker that finds no place keeps
nothing waiting. What was with a worker that died comes last, each group alone on its worker and with its files read
apart, so that what kills workers is found, named and left out after a bounded number of deaths.
"""

import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.runs.cluster_head import ClusterLost
from ntt_jax.runs.cluster_worker import IN_MODELS, GroupWork

AHEAD = IN_MODELS + 1
"""Groups with a worker at once: those in the models, and one being read."""
MAX_DEATHS = 3
"""Workers that may die with a group, the machine living on, before the group is left out."""
MAX_FAILED_STARTS = 3
"""Workers in a row that may die before they begin."""
NO_ROOM = 60.0
"""Seconds that a cluster may be without any machine that can hold a worker."""
MAX_SILENT = 120
"""Looks at the cluster, a second apart, during which a worker that has answered before may not answer: it hangs."""
NO_STORE = (
    "Ray's store of results is full, and so is the disk behind it (it takes no more from 95 % on); free some space, or "
    "give `ray start` another --temp-dir or a larger --object-store-memory; what is finished is saved, the same "
    "command goes on from there"
)
"""What is said where a result finds no place."""
_LOOK_EVERY = 1.0  # seconds between looks at the cluster, at least
_ASK_EVERY = 10  # looks between questions to a worker


@dataclass
class _Worker:
    actor: Any
    begun: Any  # reference to what `begin` returns; None once it has
    node: str = ""  # the machine, once it has answered
    asked: Any = None  # reference to what `node` returns
    looks: int = 0  # since it was asked
    groups: dict[Any, int] = field(default_factory=dict)  # reference to a result: number of its group
    alone: bool = False  # works on a group that must have the worker to itself


class Pool:
    """The groups and the workers of one call of `cluster.map_groups`.

    start: makes an actor (`GroupWorker`). nodes: the machines that live, None while that is not known
    (`cluster_head.Head.nodes`). room: how many actors such machines can hold.
    """

    def __init__(
        self,
        ray: Any,
        start: Callable[[], Any],
        nodes: Callable[[], list[dict[str, Any]] | None],
        room: Callable[[list[dict[str, Any]]], int],
        work: GroupWork,
        groups: Sequence[Sequence[Any]],
    ):
        self._ray, self._start, self._nodes, self._room = ray, start, nodes, room
        self._work, self._groups = work, groups
        self._waiting = deque(range(len(groups)))
        self._suspects: deque[int] = deque()
        self._deaths: dict[int, int] = {}
        self._workers: list[_Worker] = []
        self._failed_starts, self._looked, self._had_room = 0, 0.0, time.monotonic()
        self._left_out: list[list[dict[str, Any]]] = []

    def results(self) -> Iterator[list[dict[str, Any]]]:
        """The records of each group as they come. Ends the workers, however it ends."""
        try:
            while self._waiting or self._suspects or any(worker.groups for worker in self._workers):
                self._hire()
                self._feed()
                for worker, reference in self._ready():
                    if worker in self._workers:  # and not lost a moment ago
                        yield from self._take(worker, reference)
                while self._left_out:
                    yield self._left_out.pop()
        except ClusterLost:
            self._workers.clear()  # nobody is there to end them
            raise
        finally:
            for worker in self._workers:
                self._ray.kill(worker.actor)

    def _hire(self) -> None:
        """Ask for as many workers as the cluster can hold and the groups can use, and one more, so that a cluster that
        grows by demand grows."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY:
            return
        self._looked = now
        if (nodes := self._nodes()) is None:
            return  # those at work go on
        self._ask()
        if self._failed_starts >= MAX_FAILED_STARTS:
            return  # those that have begun finish the work
        room = self._room(nodes)
        if room or any(worker.begun is None for worker in self._workers):
            self._had_room = now
        elif now - self._had_room > NO_ROOM:
            raise InputError(
                f"--ray: no machine of the cluster can hold a worker, for {NO_ROOM:.0f} s now; what is finished is "
                "saved, the same command goes on from there"
            )
        wanted = min(room + 1, len(self._waiting) + len(self._suspects))
        while len(self._workers) < wanted:
            actor = self._start()
            self._workers.append(_Worker(actor, actor.begin.remote()))

    def _ask(self) -> None:
        """Ask every worker whether it lives; one that computes answers, one that hangs does not. Counted in looks, so
        that a pause of this process is none of theirs."""
        for worker in self._workers.copy():
            worker.looks += 1
            if worker.asked is None and (worker.looks >= _ASK_EVERY or not worker.node):
                worker.asked, worker.looks = worker.actor.node.remote(), 0
            elif worker.asked is not None and worker.node and worker.looks > MAX_SILENT:
                self._lost(worker, TimeoutError(f"it has not answered for {MAX_SILENT} s"))

    def _feed(self) -> None:
        """Give every worker one group, then every worker another: few groups are shared out evenly."""
        free = [worker for worker in self._workers if worker.begun is None and not worker.alone]
        for count in range(AHEAD):
            for worker in free:
                if self._waiting and len(worker.groups) == count:
                    self._send(worker, self._waiting.popleft(), apart=False)
        for worker in free:
            if self._suspects and not worker.groups:
                worker.alone = True
                self._send(worker, self._suspects.popleft(), apart=True)

    def _send(self, worker: _Worker, number: int, apart: bool) -> None:
        reference = worker.actor.do.remote(pickle.dumps(self._groups[number]), apart)
        worker.groups[reference] = number

    def _ready(self) -> list[tuple[_Worker, Any]]:
        """What has come, after a moment at most."""
        owner = {worker.begun: worker for worker in self._workers if worker.begun is not None}
        owner |= {worker.asked: worker for worker in self._workers if worker.asked is not None}
        owner |= {reference: worker for worker in self._workers for reference in worker.groups}
        if not owner:
            time.sleep(_LOOK_EVERY / 10)
            return []
        references = list(owner)
        ready, rest = self._ray.wait(references, num_returns=1, timeout=_LOOK_EVERY)
        if ready and rest:
            ready += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return [(owner[reference], reference) for reference in ready]

    def _take(self, worker: _Worker, reference: Any) -> Iterator[list[dict[str, Any]]]:
        errors = self._ray.exceptions
        try:
            content = self._ray.get(reference)
        except store_errors(self._ray) as error:
            raise InputError(f"--ray: {NO_STORE} ({last_line(error)})") from None
        except errors.RayTaskError as error:  # of what surrounds the work: that is sent back, not raised
            raise RuntimeError(f"a worker failed: {last_line(error)}") from None
        except errors.RayError as error:
            self._lost(worker, error)
            return
        if reference == worker.asked:
            worker.node, worker.asked, worker.looks = content, None, 0
            return
        if reference == worker.begun:
            worker.begun, self._failed_starts = None, 0
            worker.node, error = content[0], pickle.loads(content[1])  # made by our own worker
            if error is not None:
                raise error
            return
        number, worker.alone = worker.groups.pop(reference), False
        kind, content = pickle.loads(content)
        if kind == "error":
            raise content
        self._deaths.pop(number, None)
        yield content

    def _lost(self, worker: _Worker, error: Exception) -> None:
        """A worker died: with its machine, by a signal, for want of memory, or of what it was given."""
        self._workers.remove(worker)
        self._looked = 0.0  # look for another at once
        if (nodes := self._nodes()) is not None:
            self._ray.kill(worker.actor)  # if it only does not answer, it must not go on
        living = {node["NodeID"] for node in nodes or ()}
        if worker.begun is not None:
            self._failed_starts += worker.node in living or not worker.node
            if self._failed_starts >= MAX_FAILED_STARTS and all(other.begun is not None for other in self._workers):
                raise InputError(
                    f"--ray: {self._failed_starts} workers in a row ended while they loaded the models "
                    f"({last_line(error)}); every machine needs ntt-jax[ray] and room for them; what is "
                    "finished is saved"
                )
            return
        for number in worker.groups.values():
            if worker.node in living:
                self._deaths[number] = self._deaths.get(number, 0) + 1
            if self._deaths.get(number, 0) >= MAX_DEATHS:
                reason = f"{self._deaths[number]} workers ended while they worked on it ({last_line(error)})"
                self._left_out.append(self._work.lost(self._groups[number], reason))
            else:
                self._suspects.append(number)


def store_errors(ray: Any) -> tuple[type[Exception], ...]:
    """What Ray raises where an object finds no place, in memory or on the disk."""
    return ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError


def last_line(error: Exception) -> str:
    """What an error of Ray says in one line: its messages are long, and end with the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
