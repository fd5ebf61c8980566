"""Types that several rooms name. It imports torch: modules that must be quick name them for type checkers only."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

Features = torch.Tensor | np.ndarray  # (N, D), a memory map among the arrays
Ids = torch.Tensor | np.ndarray | Sequence[int]  # pool indices, (n,)
Device = torch.device | str
Log = Callable[[str], object]  # takes one line
