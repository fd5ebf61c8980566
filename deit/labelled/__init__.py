"""From labels to answers: what stands around the trainer for somebody with a folder of images and labels for some.

train_on_labels reads what annotators give back, trains, and leaves a model and a report in the folder of
data_selection's choose_images; predict_images asks that model.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deit.labelled.training import predict_images, train_on_labels

__all__ = ["predict_images", "train_on_labels"]


def __getattr__(name: str) -> Any:
    """The two functions; imported when they are asked for, since they bring torch along."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from deit.labelled import training

    return getattr(training, name)
