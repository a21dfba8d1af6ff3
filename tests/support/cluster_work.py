"""Work for the workers of a cluster that needs no models."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Numbers:
    """Records that repeat their numbers. seconds: how long each group takes. ends: the worker, as it loads. more: bytes
    in each record."""

    seconds: float = 0.0
    ends: bool = False
    more: int = 0

    def load(self, compute: Any) -> None:
        """No models."""
        if self.ends:
            os._exit(1)

    def read(self, group: Sequence[int], apart: bool) -> None:
        """No files."""

    def do(self, models: None, group: Sequence[int], read: None) -> list[dict[str, Any]]:
        """One record for each number, with the node it was made on; a negative one ends its worker."""
        import ray

        time.sleep(self.seconds)
        if min(group) < 0:
            os._exit(1)
        node = ray.get_runtime_context().get_node_id()
        return [
            {"number": number, "node": node, **({"more": bytes(self.more)} if self.more else {})} for number in group
        ]

    def lost(self, group: Sequence[int], reason: str) -> list[dict[str, Any]]:
        """The numbers, with the reason."""
        return [{"number": number, "skipped": reason} for number in group]
