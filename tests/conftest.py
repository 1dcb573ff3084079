"""The order of the suite, and what collecting it leaves behind."""

import gc

import pytest


def pytest_configure() -> None:
    """Collect without looking for cycles among millions of imported objects again and again."""
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: at the end of a run on several processes none waits for a long one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Look for cycles from here on, but never among what was imported."""
    gc.collect()
    gc.freeze()
    gc.enable()
