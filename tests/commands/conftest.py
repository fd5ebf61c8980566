"""What tests of choose_images.py share."""

import pytest

from data_selection.commands.choose_images import main_choose


@pytest.fixture
def choose(folder, weights):
    """The command on the shoes, 12 images at random; flags as keywords."""

    def run(out, source=folder, **flags):
        base = {"budget": 12, "out": out, "method": "random", "model": "demo_vit", "weights": weights, "device": "cpu",
                "num_workers": 0}  # fmt: skip
        words = [str(source)]
        for name, value in (base | flags).items():
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{name}" if name == "num_workers" else f"--{name.replace('_', '-')}", *map(str, values)]
        main_choose(words)
        return out

    return run
