"""The textbook finetuning loop: plain DataLoader, torchvision transforms, torch's SGD, one process, global seeds."""

import math

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from data_selection.embedding.backbones import build_model, load_weights


class Labelled(Dataset):
    """(transformed image, label) of the pool indices `ids`."""

    def __init__(self, pool, ids, transform):
        self.pool, self.ids, self.transform = pool, list(ids), transform

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return self.transform(self.pool.image(self.ids[i])), self.pool.label(self.ids[i])


def rate(epoch, epochs, lr, warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5):
    """Learning rate of an epoch, counted from 0: linear warm-up, then a cosine over all epochs."""
    if epoch < warmup_epochs:
        return warmup_lr + (lr - warmup_lr) * epoch / warmup_epochs
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def finetune(
    train_pool, ids, test_pool, *, weights, mean, std, size=28, epochs=40, batch=64, lr=0.1, clip=2.0, smoothing=0.1,
    drop_path=0.1, decay=1e-4, seed=0, every=5, bf16=True,
):  # fmt: skip
    """Finetune demo_vit on pool indices `ids` with the released recipe. Returns {epoch: top-1 in percent}.

    lr is for 512 images a step. Evaluated each `every` epochs and after the last.
    """
    torch.manual_seed(seed)
    model = build_model("demo_vit", train_pool.classes, drop_path_rate=drop_path)
    load_weights(model, weights, allow_missing=("head.*",), log=lambda line: None)
    plain = [transforms.ToTensor(), transforms.Normalize((mean,) * 3, (std,) * 3)]
    augment = [transforms.RandomCrop(size, padding=4), transforms.RandomHorizontalFlip()]
    train_set = Labelled(train_pool, ids, transforms.Compose([*augment, *plain]))
    test_set = Labelled(test_pool, range(len(test_pool)), transforms.Compose(plain))
    test_loader = DataLoader([test_set[i] for i in range(len(test_set))], batch_size=250)  # transformed once
    spared = [p for name, p in model.named_parameters() if p.ndim == 1 or name in ("cls_token", "pos_embed")]
    other = [p for name, p in model.named_parameters() if p.ndim > 1 and name not in ("cls_token", "pos_embed")]
    groups = [{"params": other, "weight_decay": decay}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
    accuracy = {}
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = rate(epoch, epochs, lr * batch / 512)
        order = [i for i in torch.randperm(len(train_set)).tolist() for _ in range(3)]
        order = order[: 256 * max(1, len(train_set) // 256)]
        model.train()
        for images, labels in DataLoader(train_set, batch_size=batch, sampler=order):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(images)
            optimizer.zero_grad()
            criterion(logits.float(), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
        if (epoch + 1) % every == 0 or epoch + 1 == epochs:
            accuracy[epoch + 1] = top1(model, test_loader, bf16)
    return accuracy


@torch.no_grad()
def top1(model, loader, bf16):
    model.eval()
    right = []
    for images, labels in loader:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            right.append(model(images).argmax(1) == labels)
    return 100 * torch.cat(right).double().mean().item()
