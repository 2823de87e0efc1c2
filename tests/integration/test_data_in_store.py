"""The data set in Ray's object store."""

from __future__ import annotations

from typing import Any

import ray

from fmoe.data import Data
from fmoe.data.streamed import Streamed
from fmoe.on_ray.shared_data import SharedData


@ray.remote  # type: ignore[untyped-decorator]
def seen(shared: SharedData) -> dict[str, Any]:
    data = shared.data()
    assert not isinstance(shared.train, Streamed)
    array, _ = shared.train
    return {
        "same_memory": data.train.held().images.data_ptr() == array.ctypes.data,
        "owns": bool(array.flags.owndata),
        "writeable": bool(array.flags.writeable),
        "digest": data.train_digest,
        "test": hasattr(data, "test"),
        "sum": int(data.train.held().images.sum()),
        "val": len(data.val),
    }


def test_workers_get_views_and_not_copies(ray_session: None, digits: Data) -> None:
    shared = ray.put(SharedData.of(digits))
    for found in ray.get([seen.remote(shared) for _ in range(2)]):
        assert found["same_memory"]
        assert not found["owns"]
        assert not found["writeable"]
        assert found["digest"] == digits.train_digest
        assert not found["test"]
        assert found["sum"] == int(digits.train.images.sum())
        assert found["val"] == len(digits.val)
