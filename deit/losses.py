"""The training objective: cross-entropy on hard or mixed targets, and distillation from a teacher."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

Logits = torch.Tensor | tuple[torch.Tensor, torch.Tensor]  # (R, C); of a distilled model in training: two of them


@dataclass
class Criterion:
    """Loss of a batch, SUMMED over its rows (the caller divides by the size of the global batch).

    smoothing: label smoothing. teacher: a model in evaluation mode, or None. kind: none, soft, hard. alpha: weight of
    the distillation term. tau: temperature of the soft one.
    Source: DeiT (Touvron et al. 2021), eqs. 2 and 3; the soft term is divided by the number of classes as in its code.
    """

    smoothing: float = 0.0
    teacher: Callable[[torch.Tensor], torch.Tensor] | None = None
    kind: str = "none"
    alpha: float = 0.5
    tau: float = 1.0

    def __call__(self, images: torch.Tensor, outputs: Logits, targets: torch.Tensor) -> torch.Tensor:
        """The loss of images (R, 3, H, W), a float32 scalar.

        outputs: logits (R, C), or with a teacher the pair of class and distillation logits. targets: labels (R,) or
        soft targets (R, C).
        """
        if self.kind == "none":
            assert isinstance(outputs, torch.Tensor)
            return self.base(outputs, targets)
        assert self.teacher is not None
        logits, student = outputs
        with torch.no_grad():
            teacher = self.teacher(images).float()  # (R, C)
        student = student.float()
        if self.kind == "hard":
            term = cross_entropy(student, teacher.argmax(1), reduction="sum")
        else:
            said, told = (log_softmax(x / self.tau, dim=1) for x in (student, teacher))
            term = kl_div(said, told, reduction="sum", log_target=True) * self.tau**2 / student.shape[1]
        return (1 - self.alpha) * self.base(logits, targets) + self.alpha * term

    def base(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits.float(), targets, label_smoothing=self.smoothing, reduction="sum")
