"""What every command does with a wrong flag, and with a home folder's ~."""

import pytest

from data_selection.common.parsing import Parser


@pytest.fixture
def parser():
    made = Parser(prog="choose.py", description="Choose.")
    made.add_argument("--model")
    made.add_argument("--mode", choices=("a", "b"))
    made.add_argument("--budget", type=int, default=3, help="images")
    made.add_argument("files", nargs="*")
    return made


@pytest.mark.parametrize(("words", "second"), [
    (["--modell", "x"], "choose.py: error: unrecognized arguments: --modell; did you mean --model or --mode?"),
    (["--bugdet=3"], "choose.py: error: unrecognized arguments: --bugdet=3; did you mean --budget?"),
    (["--zzz"], "choose.py: error: unrecognized arguments: --zzz"),
    (["--budget", "x"], "choose.py: error: argument --budget: invalid int value: 'x'"),
    (["--budg", "3"], "choose.py: error: unrecognized arguments: --budg; did you mean --budget?"),
])  # fmt: skip
def test_a_wrong_flag_ends_in_two_lines_with_the_nearest_one(parser, capsys, words, second):
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == ["usage: choose.py [flags], which --help tells", second]


def test_the_nearest_flag_is_named_where_another_is_missed(parser, capsys):
    parser.add_argument("--labels", required=True)
    for words, hint in ((["--lables", "x"], "; did you mean --labels?"), (["--mode", "a"], "")):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
        assert capsys.readouterr().err.splitlines()[1] == (
            f"choose.py: error: the following arguments are required: --labels{hint}"
        )


def test_the_home_folder_is_expanded_wherever_the_shell_leaves_it(parser, monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna")
    args = parser.parse_args(["--model=~/w.pth", "~/a", "x~", "a=~/b", "~"])
    assert (args.model, args.files) == ("/home/anna/w.pth", ["/home/anna/a", "x~", "a=~/b", "/home/anna"])


def test_one_word_means_one_thing_in_all_commands():
    """Beside the released spellings."""
    from data_selection.commands import activeft, bilaf, extract
    from deit import options

    same = extract.build_parser().parse_args(["--model", "vit_tiny", "--weights", "w.pth", "--dataset", "DEMO"])
    assert (same.arch, same.pretrained_weights, same.dataset) == ("vit_tiny", "w.pth", "DEMO")
    same = options.build_parser().parse_args(["--model", "vit_tiny", "--weights", "w.pth", "--dataset", "DEMO"])
    assert (same.model, same.finetune, same.data_set) == ("vit_tiny", "w.pth", "DEMO")
    assert str(activeft.build_parser("activeft_cifar").parse_args(["--features", "F.npy"]).feature_path) == "F.npy"
    parser = bilaf.build_parser("density_cluster")
    assert str(parser.parse_args(["--features", "F.npy"]).features_inputs) == "F.npy"


def test_help_tells_defaults(parser, capsys):
    parser.add_argument("--weights", default="", help="a file")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    told = capsys.readouterr().out
    assert "usage: choose.py [flags]" in told
    assert "images (default: 3)" in told
    assert told.rstrip().endswith("a file")
