"""What a model is asked in: the precision that is asked for. Each step has masks of its own in the drop layers."""

import pytest
import torch
from torch import nn

from data_selection.common.distributed import World
from deit.engine import evaluate, probabilities
from deit.main import main
from deit.samples.draws import DropDraws
from tests.support.trainer_runs import command, make_images

pytestmark = pytest.mark.usefixtures("one_thread")
ALONE = World(0, 1, torch.device("cpu"))


class Seven:
    """Seven images of nine values and two classes."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.images, self.labels = torch.randn(7, 9, generator=generator), torch.arange(7) % 2

    def __len__(self):
        return 7

    def plain(self, indices, batch):
        for start in range(0, len(indices), batch):
            rows = list(indices)[start : start + batch]
            yield self.images[rows], self.labels[rows]


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_a_model_is_asked_in_the_precision_that_is_asked_for(amp):
    torch.manual_seed(0)
    model, data = nn.Linear(9, 2), Seven()
    with torch.no_grad():
        logits = model(data.images)
        if amp:
            narrow = model.to(amp)(data.images.to(amp)).float()
            model.float()
            assert not torch.equal(narrow, logits)
            logits = narrow
    loss = nn.functional.cross_entropy(logits, data.labels).item()
    assert evaluate(model, data, ALONE, batch=3, amp=amp)["loss"] == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(probabilities(model, data, ALONE, 2, batch=3, amp=amp), logits.softmax(1))


def test_every_step_of_every_epoch_has_masks_of_its_own(tmp_path, monkeypatch):
    tables, real = [], DropDraws.begin

    def begin(self, epoch, step, rows, device):
        real(self, epoch, step, rows, device)
        tables.append((epoch, step, tuple(self.table.flatten().tolist())))

    monkeypatch.setattr(DropDraws, "begin", begin)
    main(command(make_images(tmp_path), epochs=2, drop_path=0.2))
    places = [place for *place, _ in tables]
    assert places == [[epoch, step] for epoch in (1, 2) for step in range(len(tables) // 2)]
    assert len({table for *_, table in tables}) == len(tables) > 2
