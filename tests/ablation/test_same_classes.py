"""Classes of the references as categories of the targets: by id and name, else by name, said once."""

import pytest

from ntt_jax.ablation.job import same_classes
from ntt_jax.datasets.dataset import CocoCategory, CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.runs.observer import Silent


class Heard(Silent):
    """What an observer is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def targets(*categories: tuple[int, str]) -> CocoDataset:
    return CocoDataset("t.json", "", {}, {}, {i: CocoCategory(i, name) for i, name in categories}, {})


GIVEN = [CocoCategory(1, "cat"), CocoCategory(2, "dog")]


def test_the_same_numbers_change_nothing() -> None:
    heard = Heard()
    assert same_classes(GIVEN, targets((1, "cat"), (2, "dog"), (3, "cow")), heard) == (GIVEN, [0, 1])
    assert not heard.lines


def test_other_numbers_are_matched_by_name_and_put_in_order() -> None:
    heard = Heard()
    found, order = same_classes(GIVEN, targets((7, "cat"), (4, "dog")), heard)
    assert found == [CocoCategory(4, "dog"), CocoCategory(7, "cat")] and order == [1, 0]
    (line,) = heard.lines
    assert "number differently, matched by their names: 2 (the first: 'cat' is 1 in the references, 7 in" in line


@pytest.mark.parametrize("there", [((1, "cat"),), ((1, "cat"), (5, "dog"), (6, "dog")), ((1, "cat"), (2, "cow"))])
def test_a_class_that_is_missing_or_there_twice(there: tuple[tuple[int, str], ...]) -> None:
    with pytest.raises(InputError, match="the class 2, 'dog' in --reference-annotations, is another one"):
        same_classes(GIVEN, targets(*there), Heard())
