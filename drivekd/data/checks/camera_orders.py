"""Whether a file shows its cameras in one order: a model that hears "the second picture" for two cameras learns neither."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from drivekd.camera_order import cameras_in_paths
from drivekd.sample import Sample


class CameraOrders:
    """Gathers the orders of a file's records, which are few."""

    def __init__(self) -> None:
        self._orders: dict[tuple[str, ...], tuple[str, int]] = {}

    def add(self, sample: Sample) -> None:
        """Add a sample; one that names no cameras has no order."""
        first, count = self._orders.get(sample.cameras, (sample.source, 0))
        self._orders[sample.cameras] = (first, count + 1)

    @staticmethod
    def contradiction(sample: Sample) -> str | None:
        """What is wrong where the pictures' own names name other cameras than the record does."""
        named = cameras_in_paths(tuple(map(str, sample.images))) if sample.cameras else ()
        if named in ((), sample.cameras):
            return None
        return f"{sample.source}: cameras: {', '.join(sample.cameras)}; the pictures' names say {', '.join(named)}"

    def findings(self) -> Iterator[tuple[str, int]]:
        """Each order that contradicts the most frequent one: (text, how many records have it)."""
        orders = sorted((item for item in self._orders.items() if len(item[0]) > 1), key=lambda item: -item[1][1])
        for place, (order, (source, count)) in enumerate(orders):
            for other, (other_source, other_count) in orders[:place]:
                if _contradict(order, other):
                    yield (
                        f"{source}: cameras: {', '.join(order)}; in {other_source} and {other_count - 1:,} more "
                        f"{', '.join(other)}: training follows data.cameras by name",
                        count,
                    )
                    break


def _contradict(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Whether two cameras that both show stand the other way round."""
    return any(x in b and y in b and b.index(x) > b.index(y) for x, y in combinations(a, 2))
