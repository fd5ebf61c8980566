"""Finetune an image classifier on a chosen subset.

python main.py --data-set DEMOSUBSET --subset_ids SUBSET.json --epochs 50 --output_dir Outputs
python -m torch.distributed.launch --nproc_per_node=2 --master_port 2222 --use_env main.py --clip-grad 2.0 \
    --eval_interval 50 --data-set CIFAR100SUBSET --subset_ids SUBSET.json --resume dino_deitsmall16_pretrain.pth \
    --output_dir Outputs/
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_selection.common.errors import run
from deit.options import parse


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, check, train. --help and wrong flags are answered before torch is imported, which takes seconds."""
    args = parse(argv, complete=True)
    from deit.trainer import train

    train(args)


if __name__ == "__main__":
    sys.exit(run(main))
