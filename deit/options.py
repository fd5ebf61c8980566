"""The trainer's flags: the released ones with BiLAF's defaults, and what was added. Imports nothing slow."""

import argparse
from collections.abc import Sequence

from data_selection.common.parsing import BACKGROUND, Parser, colour
from deit.flags import Flags, Help, Refused, epoch_from_one, number_or_auto, whole_or_auto
from deit.option_checks import DATA_SET, DATA_SETS, SCHEDULES, check, check_no_idle_flag, meant_data_set
from deit.recipes import FOLDER, config_tokens, recipe_file, recipe_names

RANKS = ("kingdom", "phylum", "class", "order", "supercategory", "family", "genus", "name")  # of iNaturalist
MODES = ("full", "linear", "lp-ft", "self-train", "smoothed", "three-phase", "auto")
PIXELS, AUGMENTS = ("data-set", "model"), ("crop", "shift")


START = """Finetune an image classifier on a chosen subset.

Start here, with a subset that ActiveFT chose of the embedded demo pool, then with a folder of your own, then as in the
papers:
  python deit/main.py --data-set DEMOSUBSET --subset_ids SUBSET.json --output_dir outputs/demo
  python deit/main.py --data-set FOLDERSUBSET --data-path images --subset_ids SUBSET.json --labels labels.csv \\
      --model resnet50 --finetune weights.pth --output_dir outputs/mine
  python -m torch.distributed.launch --nproc_per_node=2 --use_env deit/main.py --data-set CIFAR100SUBSET \\
      --subset_ids SUBSET.json --resume dino_deitsmall16_pretrain.pth --clip-grad 2.0 --output_dir outputs/cifar
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all flags, without the recipe's values and without checks."""
    parser = Parser(prog="main.py", description=START, formatter_class=Help)
    _add_data(Flags(parser, "data"))
    _add_model(Flags(parser, "model and weights"))
    _add_optimisation(Flags(parser, "optimisation"))
    _add_augmentation(Flags(parser, "augmentation and loss"))
    _add_run(Flags(parser, "run"))
    return parser


def _add_data(flags: Flags) -> None:
    add, switch = flags.add, flags.switch
    add("--data-set", "--dataset", default=DATA_SET, metavar="NAME", help=f"one of {', '.join(DATA_SETS)}")
    add("--data-path", metavar="DIR", help="where the data is; default: data in the working folder, deit/data or, "
        "for what extraction has downloaded, data_selection/data")  # fmt: skip
    add("--subset_ids", metavar="LIST", nargs="+", help="the images to train on, for the SUBSET data sets: subset "
        "files, files of names (.txt, .csv) or folders of these images")  # fmt: skip
    add("--missing", choices=("stop", "skip"), default="stop", help="images of --subset_ids that are not there")
    add("--features", metavar="FILE", help="feature file by the same weights from the same pixels: linear: of the "
        "training images; smoothed, auto: of the whole pool; default: the one that --subset_ids was chosen by, where "
        "it is at hand")  # fmt: skip
    add("--labels", metavar="FILE", help="FOLDER: CSV `file,label` for the images in train/, instead of class folders")
    add("--val-labels", metavar="FILE", help="FOLDER: the same for the images in val/")
    add("--train-path", metavar="DIR", help="FOLDER: the images to train on, a folder or a list of paths (relative to "
        "--data-path, else to the list), instead of train/ in --data-path")  # fmt: skip
    add("--val-path", metavar="DIR", help="FOLDER: the evaluation images, likewise, instead of val/ in --data-path; "
        "none: there are none, and nothing is evaluated")  # fmt: skip
    add("--input-size", type=int, help="side of the images in pixels; default by data set: DEMO 28, others 224")
    add("--num_workers", type=int, help="processes per rank that load images; default by cores, none for small images")
    add(
        "--cache",
        choices=("auto", "device", "ram", "none"),
        default="auto",
        help="keep decoded images, on the device (images of one size; augments whole batches) or in main memory; "
        "auto: whichever is faster, where all together take up to 2 GiB on a card or a machine",
    )
    add(
        "--pixels",
        choices=PIXELS,
        default="data-set",
        help="data-set: as the papers' trainer: ImageNet's mean and std (DEMO: its own), the centre of 256/224 of the "
        "size; model: size, mean, std, interpolation and crop that the model was pretrained with, as in extraction",
    )
    add("--background", type=colour, default="white", metavar="COLOUR", help=BACKGROUND)
    switch("--pin-mem", True, "page-locked memory for copies to a GPU")
    add("--data_Gen_path", action=Refused, reason="generated images (IMNETSUBSET_Generate) are not read")
    add("--inat-category", choices=RANKS, default="name", help="INAT, INAT19: the rank that makes a class")


def _add_model(flags: Flags) -> None:
    add, switch = flags.add, flags.switch
    add(
        "--model", metavar="NAME", help="a timm name; default by data set: DEMO demo_vit, others deit_small_patch16_224"
    )
    add(
        "--finetune",
        "--weights",
        default="",
        metavar="FILE",
        help="pretrained weights, a file or https address; `none`: random ones",
    )
    add(
        "--resume",
        default="",
        metavar="FILE",
        help="checkpoint to continue; a file of weights alone acts as --finetune",
    )
    switch("--auto-resume", False, "continue from output_dir/checkpoint.pth where there is one")
    add("--checkpoint_key", metavar="NAME", help="entry of the weights' file that holds them, such as student")
    switch("--allow-http", False, "take weights from addresses without https, which anybody on the way can change")
    add(
        "--drop",
        type=float,
        default=0.0,
        metavar="RATE",
        help="dropout on what the classifier sees",
    )
    add("--drop-path", type=float, default=0.1, metavar="RATE", help="stochastic depth, where the model knows it")
    switch("--model-ema", True, "keep a moving average of the weights, evaluated after the last epoch")
    add("--model-ema-decay", type=float, default=0.99996, help="how much of the average a step keeps")
    switch(
        "--model-ema-warmup", False,
        "let the average forget faster at first, so that it means something at once; on with every recipe but paper",
    )  # fmt: skip
    switch("--eval-ema", False, "evaluate the average with every evaluation, and with --eval that of the checkpoint")
    add("--model-ema-force-cpu", action="store_true", help="keep it in main memory")


def _add_optimisation(flags: Flags) -> None:
    add = flags.add
    add("--batch-size", type=int, default=256, help="images per process and pass")
    add("--global-batch-size", type=int, help="images per step over all processes; default: batch size x processes")
    add(
        "--mode",
        choices=MODES,
        default="full",
        help="full: every weight; linear: the head alone, by logistic regression on the frozen backbone's features of "
        "the images without augmentation, in seconds; lp-ft: linear, then full from that head; self-train: lp-ft, then "
        "epochs on the whole pool by soft labels that the pool's nearest-neighbour graph gives it; smoothed: the "
        "graph of the pool's feature file answers, in seconds; three-phase: lp-ft, then the head again, on features of "
        "augmented images; auto: one of the others, by cross-validation on the labels and --minutes",
    )
    flags.switch("--distil", False, "smoothed: the result is the model, its head taught the graph's word on the pool")
    add("--restarts", type=int, default=1, metavar="R",
        help="train R times on the labels from the same start with other draws, and average the weights")  # fmt: skip
    add("--rounds", type=int, default=2, help="self-train: how often the pool is embedded anew and trained on, unmixed")
    add("--epochs", type=whole_or_auto, default=1000, help="auto: by the number of labels, as 30 for 100")
    add("--minutes", type=float, metavar="M", help="fewer rounds, restarts, epochs where they would take longer")
    add("--start_epoch", type=epoch_from_one, default=1, help="first epoch, counted from 1")
    add(
        "--folds",
        type=int,
        default=0,
        metavar="K",
        help="lp-ft: train on all but one of K parts of the labels first, and where that loses on the parts left out "
        "by more than a standard error, keep the model that it starts from; 0: do not ask",
    )
    add("--opt", default="SGD", help="a timm optimiser; SGD has Nesterov momentum")
    add("--opt-eps", type=float, default=1e-8, help="for the optimisers that have one (SGD has none)")
    add("--opt-betas", type=float, nargs="+", help="default: the optimiser's own")
    add("--clip-grad", type=float, metavar="NORM", help="largest gradient norm")
    add("--momentum", type=float, default=0.9, help="of SGD and the optimisers that have one")
    add("--weight-decay", type=float, default=1e-4, help="not applied to biases, norms and embeddings of tokens")
    add("--layer-decay", type=float, help="learning-rate factor per layer from the head down")
    add("--head-scale", type=float, default=1.0, metavar="S", help="what the head is multiplied by before it is "
        "trained with the rest; below 1, a head that knows nothing begins at zero")  # fmt: skip
    add("--head-rate", type=number_or_auto, default=1.0, metavar="F", help="factor of the head's learning rate; auto: "
        "1,280 / its inputs, as a step of Adam moves its answers by the rate for each of them")  # fmt: skip
    add("--lr", type=float, default=3e-3, help="learning rate of 512 images per step; scaled by the global batch")
    add("--sched", default="cosine", metavar="NAME", help=f"one of {', '.join(SCHEDULES)}; multistep: at 30, 60 and 90 "
        "percent of the epochs")  # fmt: skip
    add("--lr-noise", type=float, nargs="+", help="where the rate is noisy, as fractions of the epochs")
    add("--lr-noise-pct", type=float, default=0.67, help="bound of the noise")
    add("--lr-noise-std", type=float, default=1.0, help="deviation of the noise, before its bound")
    add("--warmup-lr", type=float, default=1e-6, help="rate of the first epoch, not scaled")
    add("--min-lr", type=float, default=1e-5, help="floor, not scaled")
    add("--decay-epochs", type=float, help="step: between two falls, by default 30, or a third of up to 30; wsd, "
        "rsqrt: of the fall in the end, by default a fifth of the epochs")  # fmt: skip
    add("--decay-rate", "--dr", type=float, default=0.1, help="factor of step and multistep, power of poly")
    add("--warmup-epochs", type=int, default=5, help="epochs in which the rate climbs from --warmup-lr")
    add("--warmup-steps", type=int, help="the same in steps, at most a quarter of the run; needs --sched-unit step")
    add("--sched-unit", choices=("epoch", "step"), default="epoch", help="how often the schedule moves the rate")
    add(
        "--batch-norm",
        choices=("train", "fixed"),
        default="train",
        help="fixed: pretrained batch norm statistics are kept, its weights still learn; train: those of each batch",
    )
    add("--cooldown-epochs", type=int, default=0, help="epochs at the floor after the schedule")
    add(
        "--patience-epochs",
        action=Refused,
        reason="it belongs to the plateau schedule, which cannot be resumed exactly",
    )


def _add_augmentation(flags: Flags) -> None:
    add, switch = flags.add, flags.switch
    add(
        "--augment",
        choices=AUGMENTS,
        default="crop",
        help="crop: random crops of 8 to 100 percent of the area (images of up to 32 pixels: shifted by up to 4); "
        "shift: the image as evaluation sees it, shifted by up to an eighth; both flip",
    )
    add("--color-jitter", type=float, default=0.0, help="strength; absent under --aa")
    add("--aa", metavar="POLICY", help="AutoAugment or RandAugment, such as rand-m9-mstd0.5-inc1")
    add("--train-interpolation", choices=("random", "bilinear", "bicubic"), default="bicubic",
        help="how random crops are resized; random: either, by the draw")  # fmt: skip
    switch("--repeated-aug", True, "each image three times in a row, a third of a large subset per epoch")
    add("--reprob", type=float, default=0.0, help="chance of random erasing")
    add("--remode", default="pixel", choices=("const", "rand", "pixel"), help="fill of random erasing")
    add("--recount", type=int, default=1, help="boxes of random erasing")
    add("--resplit", action=Refused, reason="it did nothing in the released trainer either")
    add("--smoothing", type=float, default=0.1, help="label smoothing")
    add("--mixup", type=float, default=0.0, help="alpha; 0: off")
    add("--cutmix", type=float, default=0.0, help="alpha; 0: off")
    add("--cutmix-minmax", type=float, nargs=2, metavar=("LOW", "HIGH"), help="range of the box's side; enables CutMix")
    add("--mixup-prob", type=float, default=0.0, help="chance to mix a batch; needed with --mixup or --cutmix")
    add("--mixup-switch-prob", type=float, default=0.5, help="chance of CutMix where both are on")
    add("--mixup-mode", choices=("batch", "pair", "elem"), default="batch",
        help="one draw for a batch, for two images that are mixed with each other, or for each image")  # fmt: skip
    add("--distillation-type", choices=("none", "soft", "hard"), default="none",
        help="learn the teacher's probabilities (soft) or its first choice (hard), too")  # fmt: skip
    add("--distillation-alpha", type=float, default=0.5, help="weight of the teacher's part of the loss")
    add("--distillation-tau", type=float, default=1.0, help="temperature of soft distillation")
    add("--teacher-model", default="regnety_160", metavar="NAME", help="a timm name")
    add("--teacher-path", default="", metavar="FILE", help="the teacher's weights, with its classifier")


def _add_run(flags: Flags) -> None:
    add, switch = flags.add, flags.switch
    add("--output_dir", default="", metavar="DIR", help="default: nothing is saved")
    add("--verbose", action="store_true", help="a line for each step instead of one bar for the run")
    add("--tensorboard", action="store_true", help="write events to output_dir/tensorboard (needs that package)")
    add(
        "--recipe",
        default="auto",
        metavar="NAME",
        help=f"defaults for the other flags: {', '.join(recipe_names())} (configs/recipes) or a FILE; auto: paper "
        "where a paper trains on the data set, few-shot elsewhere",
    )
    add("--config", metavar="FILE", help="YAML of flags; the command line wins")
    add("--eval", action="store_true", help="evaluate the weights of --resume or --finetune and exit")
    add(
        "--val-fraction",
        type=float,
        metavar="F",
        help="share of the subset held out, evenly per class, to choose the best epoch by; default: the evaluation set",
    )
    add("--eval_interval", type=int, default=1, help="epochs between evaluations; the last epoch always has one")
    add("--save-interval", type=int, help="epochs between checkpoints, the last always saved; default: --eval_interval")
    switch(
        "--skip-nonfinite", False, "leave out steps whose loss is not finite (counted in log.txt) instead of stopping"
    )
    switch("--dist-eval", True, "share the evaluation among the processes; every image counts once either way")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add(
        "--amp",
        choices=("auto", "off", "bf16", "fp16", "measured"),
        default="auto",
        help="auto: bf16 or fp16 on a GPU, off on a CPU; measured: on a CPU the faster of off and bf16, by a few steps",
    )
    add("--compile", action="store_true", help="torch.compile: minutes at the start, then faster on most GPUs")
    add("--seed", type=int, default=0, help="seed of every random draw, 0 or above")
    add("--world_size", action=Refused, reason="the launcher (torchrun --nproc_per_node) sets the number of processes")
    add("--dist_url", action=Refused, reason="the launcher's environment (MASTER_ADDR, MASTER_PORT) says where to meet")
    add(
        "--local-rank", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )  # from old launchers; in LOCAL_RANK too


def given_flags(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """The names of the flags that a command line gives, whatever their values."""
    absent = object()
    found = parser.parse_args(words, argparse.Namespace(**{action.dest: absent for action in parser._actions}))
    return sorted(name for name, value in vars(found).items() if value is not absent and name != "local_rank")


def parse(argv: Sequence[str] | None = None, *, complete: bool = False) -> argparse.Namespace:
    """The flags of a command line (default: sys.argv), checked. complete: --data-set must be named, or at hand.

    The command line wins over --config, that over --recipe, and that over the flags' own defaults, the papers'.
    """
    parser = build_parser()
    first = Parser(add_help=False)
    first.add_argument("--config")
    early, rest = first.parse_known_args(argv)
    typed = (config_tokens(early.config, parser) if early.config else []) + rest
    unset = argparse.Namespace(sched_unit=None, warmup_epochs=None, data_set=None)
    given = parser.parse_args(typed, unset)  # --help and wrong words end here
    data_set = meant_data_set(given, complete)
    recipe = recipe_file(given.recipe, data_set)
    known = ["--data-set", data_set]
    words = config_tokens(recipe, parser, "--recipe", ("config", "recipe", "data_set")) + known + typed
    args = parser.parse_args(words, argparse.Namespace(model_ema_warmup=None))
    args.config, args.recipe = early.config, recipe.stem if recipe.resolve().parent == FOLDER else str(recipe)
    vars(args).pop("local_rank", None)
    if args.model_ema_warmup is None:
        args.model_ema_warmup = args.recipe != "paper"
    if given.warmup_steps is None and (given.sched_unit == "epoch" or given.warmup_epochs is not None):
        args.warmup_steps = None  # the recipe's, which no flag could unset
    if args.eval and not args.subset_ids:  # which images it was trained on is not asked
        args.data_set = args.data_set.removesuffix("SUBSET")
    args.given = given_flags(parser, typed)
    check(args)
    check_no_idle_flag(parser, given_flags(parser, rest), args.mode)
    return args
