"""The released finetuning program's structure, written plainly: what the trainer's speed is measured against."""

import json
import time
from pathlib import Path

import torch
from timm.data import create_transform
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms

REPEATS, ROUND = 3, 256


class PilSet(Dataset):
    """(transformed image, label) of the pool indices `ids`, from PIL images one by one."""

    def __init__(self, pool, ids, transform):
        self.pool, self.ids, self.transform = pool, ids, transform

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return self.transform(self.pool.image(self.ids[i])), self.pool.label(self.ids[i])


class RepeatedSampler(Sampler):
    """Every image three times in a row, the first 256 max(1, n // 256) of them, on one process."""

    def __init__(self, count):
        self.count, self.epoch = count, 0

    def __iter__(self):
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.epoch))
        return iter(order.repeat_interleave(REPEATS)[: ROUND * max(1, self.count // ROUND)].tolist())

    def __len__(self):
        return ROUND * max(1, self.count // ROUND)


def released_program(
    model, train_pool, ids, test_pool, epochs, folder,
    *, size, mean, std, batch=256, workers=16, eval_interval=50, lr=3e-3, clip=2.0, on_epoch=None,
):  # fmt: skip
    """Train for `epochs` epochs on a CPU as the released program does; on_epoch() after each. Returns log.txt's lines.

    New worker processes in every epoch, PIL augmentation image by image, the loss read back at every step, an average
    of the weights updated tensor by tensor, and a checkpoint written after every epoch. The released sampler's epoch
    is set here, which the released program forgets without a launcher.
    """
    transform = create_transform(
        size, is_training=True, color_jitter=None, auto_augment=None, interpolation="bicubic", mean=mean, std=std
    )
    transform.transforms[0] = transforms.RandomCrop(size, padding=4)
    plain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    sampler = RepeatedSampler(len(ids))
    train_loader = DataLoader(
        PilSet(train_pool, ids, transform), batch_size=batch, sampler=sampler, num_workers=workers
    )
    test_set = PilSet(test_pool, range(len(test_pool)), plain)
    test_loader = DataLoader(test_set, batch_size=3 * batch, num_workers=workers)
    spared = [p for name, p in model.named_parameters() if p.ndim <= 1 or name in ("cls_token", "pos_embed")]
    decayed = [p for p in model.parameters() if not any(p is other for other in spared)]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=lr * batch / 512, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, 1e-5)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    ema = ModelEmaV3(model, 0.99996, foreach=False)
    lines = []
    for epoch in range(1, epochs + 1):
        sampler.epoch = epoch
        model.train()
        total = 0.0
        for images, labels in train_loader:
            loss = criterion(model(images), labels)
            total += loss.item()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            ema.update(model)
        line = {"train_lr": optimizer.param_groups[0]["lr"], "train_loss": total / -(-len(sampler) // batch)}
        scheduler.step()
        states = {"model": model, "optimizer": optimizer, "lr_scheduler": scheduler, "model_ema": ema.module}
        saved = {name: part.state_dict() for name, part in states.items()} | {"epoch": epoch}
        torch.save(saved, Path(folder) / "checkpoint.pth")
        if epoch % eval_interval == 0:
            line["test_acc1"] = accuracy(model, test_loader)
        lines.append(line | {"epoch": epoch})
        with (Path(folder) / "log.txt").open("a") as handle:
            handle.write(json.dumps(lines[-1]) + "\n")
        if on_epoch is not None:
            on_epoch()
    return lines


@torch.no_grad()
def accuracy(model, loader):
    model.eval()
    right = [(model(images).argmax(1) == labels).float() for images, labels in loader]
    return 100 * torch.cat(right).mean().item()


def bare_step(model, images, labels, optimizer, dtype=None):
    """One step and nothing else: forward pass, loss, backward pass, update. Returns the seconds."""
    began = time.perf_counter()
    with torch.autocast(images.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        logits = model(images)
    optimizer.zero_grad()
    nn.functional.cross_entropy(logits.float(), labels).backward()
    optimizer.step()
    return time.perf_counter() - began
