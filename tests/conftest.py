"""What all tests share: one Ray for the tests that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sentiment.config import RaySettings


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """One embedded Ray for the whole session, with more logical CPUs than the machine may have; gives its address.

    Jobs that are called in this process join it; jobs in processes of their own get the address.
    """
    import ray

    from jobs.session import ray_session

    with ray_session(RaySettings(num_cpus=4, num_gpus=0, object_store_gib=1)):
        yield ray.get_runtime_context().gcs_address
