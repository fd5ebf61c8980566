"""Pretrain the demo backbone without labels on Fashion-MNIST's 60,000 training images.

    python scripts/demo/make_demo_backbone.py --source /usr/share/datasets/fashion-mnist

`--objective reconstruction` (the default, which made the embedded weights): from the class token of a random crop, a
linear decoder draws the whole image. `--objective dino`: multi-crop self-distillation with a
momentum teacher, centring and sharpening (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers",
ICCV 2021). On two CPU cores DINO is still below raw pixels after an hour; MODEL_CARD.md beside the weights has the
numbers of both. An interrupted run goes on from its last whole epoch when the same command is started again. Labels are
read only after an epoch, to print the k-NN and linear-probe accuracy.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from timm.layers import set_fused_attn
from tqdm import tqdm

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from data_selection.commands.shared import times
from data_selection.common.errors import run
from data_selection.common.files import atomic_write
from data_selection.embedding.backbones import DEMO_WEIGHTS
from data_selection.images.dataset_files import find_idx, read_idx
from data_selection.images.pools import load_demo
from data_selection.judging.evaluation import knn_accuracy, probe_accuracy
from scripts.demo.pretraining import OBJECTIVES, as_input, recipe


@torch.inference_mode()
def embed(backbone, images):
    """Class-token features (N, D) float32 of uint8 images (N, 28, 28), no augmentation."""
    backbone.eval()
    blocks = torch.as_tensor(images).split(500)
    return torch.cat([backbone(as_input(block[:, None].float() / 255)) for block in blocks])


def judge(backbone):
    """20-NN and linear-probe accuracy, percent, on the demo pool: 10,000 training labels, 2,000 test images."""
    demo = load_demo()
    features = [embed(backbone, demo[f"{split}_images"]) for split in ("train", "test")]
    labels = [torch.as_tensor(demo[f"{split}_labels"]).long() for split in ("train", "test")]
    return knn_accuracy(features[0], labels[0], features[1], labels[1], k=20), probe_accuracy(
        features[0], labels[0], features[1], labels[1]
    )


def save_backbone(path, pretraining):
    """The backbone as float16 safetensors; its metadata repeats the recipe."""
    from safetensors.torch import save

    weights = {name: value.half().contiguous() for name, value in pretraining.backbone.state_dict().items()}
    metadata = {
        "recipe": str(recipe(pretraining.args)),
        "seconds": f"{pretraining.seconds:.0f}",
        "torch": torch.__version__,
    }
    with atomic_write(path) as handle:
        handle.write(save(weights, metadata))


def train(pretraining, images, partial):
    """Run the remaining epochs; after each, the whole state is written to `partial`."""
    args = pretraining.args
    steps = len(images) // args.batch_size
    for epoch in range(pretraining.epoch, args.epochs):
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + epoch)
        torch.manual_seed(args.seed * 1_000_003 + epoch)  # drop layers: a resumed run then equals an unbroken one
        order = torch.randperm(len(images), generator=generator)[: steps * args.batch_size].view(steps, -1)
        start, losses = time.monotonic(), []
        bar = tqdm(order, desc=f"epoch {epoch + 1}/{args.epochs}", disable=None, unit="step")
        for i, rows in enumerate(bar):
            batch = images[rows][:, None].float() / 255
            losses.append(pretraining.step(batch, (epoch + i / steps) / args.epochs, generator))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"loss {losses[-1]} at epoch {epoch}, step {i}: lower --lr")
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
        pretraining.epoch, pretraining.seconds = epoch + 1, pretraining.seconds + time.monotonic() - start
        with atomic_write(partial) as handle:
            torch.save(pretraining.state(), handle)
        line = f"epoch {pretraining.epoch}  loss {np.mean(losses):.4f}  seconds {pretraining.seconds:.0f}"
        if pretraining.epoch % args.judge_interval == 0 or pretraining.epoch == args.epochs:
            line += "  20-NN {:.2f} %  linear probe {:.2f} %".format(*judge(pretraining.backbone))
        print(line, flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="folder with the original idx files")
    parser.add_argument("--output", type=Path, default=DEMO_WEIGHTS, help="file to write (default: %(default)s)")
    parser.add_argument("--epochs", type=times, default=16, help="passes over the 60,000 images (default: %(default)s)")
    parser.add_argument("--objective", choices=OBJECTIVES, default="reconstruction", help="(default: %(default)s)")
    parser.add_argument("--warmup-epochs", type=float, default=0.3, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="images per step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="at 256 images per step (default: %(default)s)")
    parser.add_argument("--prototypes", type=int, default=1024, help="dino: outputs of the head (default: %(default)s)")
    parser.add_argument("--local-crops", type=int, default=4, help="dino: 14 x 14 crops (default: %(default)s)")
    parser.add_argument("--teacher-momentum", type=float, default=0.99, help="dino: rises to 1 (default: %(default)s)")
    parser.add_argument("--drop-path", type=float, default=0.05, help="stochastic depth (default: %(default)s)")
    parser.add_argument("--judge-interval", type=int, default=1, help="epochs between readings (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    # The fused kernel is 1.4 times slower here: its CPU backward is written for long sequences, not for 17 tokens.
    set_fused_attn(False)
    images = torch.from_numpy(read_idx(find_idx(args.source, "train-images-idx3-ubyte")))
    with torch.random.fork_rng():  # initialisation and drop layers take no generator: keep the caller's state
        torch.manual_seed(args.seed)
        pretraining = OBJECTIVES[args.objective](args)
        partial = args.output.with_suffix(".partial.pth")
        if partial.exists():
            pretraining.load(torch.load(partial, weights_only=True))
            print(f"going on after epoch {pretraining.epoch} of {partial}")
        train(pretraining, images, partial)
    save_backbone(args.output, pretraining)
    partial.unlink()
    print(f"wrote {args.output}: {args.epochs} epochs in {pretraining.seconds / 60:.0f} minutes")


if __name__ == "__main__":
    sys.exit(run(main))
