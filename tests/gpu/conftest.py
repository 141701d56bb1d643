"""What a GPU is needed for is skipped without one, and says so.

`--on=cpu` runs the bodies on the CPU instead, as far as they mean something there: it tries the tests, not
the device.
"""

import pytest
import torch


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("on")
    if wanted == "cpu" or torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and torch sees none"))


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    """Where it runs; products and convolutions of float32 as they are, not shortened to TF32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(request.config.getoption("on"))
