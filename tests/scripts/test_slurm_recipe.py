"""The Slurm recipe with stand-ins for srun and scontrol: ranks in torch's words, and the requeueing."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] && [ "$2" = --cpus-per-task=6 ] || exit 3
shift 2
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 "$@" || exit; done
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf 'node1\\nnode2\\n'; else echo "$@" >> "$SAID"; fi
"""
PYTHON = """#!/bin/bash
echo "$RANK/$WORLD_SIZE local $LOCAL_RANK/$LOCAL_WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT: $*" >> "$SAID"
exit ${STATUS:-0}
"""


@pytest.fixture
def submit(tmp_path):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def call(*words, recipe="finetune.sbatch", **environment):
        slurm = {
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "20007",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "6",
        }
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SAID": str(tmp_path / "said"), "PYTHON": "python"}
        (tmp_path / "said").write_text("")
        command = ["bash", str(ROOT / "scripts" / recipe), *map(str, words)]
        done = subprocess.run(
            command, env=os.environ | slurm | path | environment, capture_output=True, text=True, timeout=60
        )
        return done, (tmp_path / "said").read_text().splitlines()

    return call


def test_the_job_starts_its_ranks_and_queues_itself_until_there_is_a_result(submit, tmp_path):
    words = ["--epochs", "3", "--note", "two words", "--output_dir", tmp_path / "out"]
    done, said = submit(*words)
    assert done.returncode == 0, done.stderr
    assert said[0].startswith("0/2 local 0/2 at node1:20007: ")
    assert said[1].startswith("1/2 local 1/2 at node1:20007: ")
    assert said[0].endswith(f"deit/main.py --auto-resume --epochs 3 --note two words --output_dir {tmp_path}/out")
    assert said[2] == "requeue 20007"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.json").write_text("{}")
    assert len(submit(*words)[1]) == 2


@pytest.mark.parametrize(
    ("array", "words"),
    [((2, 0, 3, 4), "--shard 2/4"), ((5, 4, 6, 3), "--shard 1/3"), ((5, 1, 5, 2), ""), ((4, 0, 6, 4), "")],
    ids=["all", "from 4", "1,5", "0-6:2"],
)
def test_an_array_shares_an_experiment_and_one_with_gaps_takes_what_is_left(submit, tmp_path, array, words):
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
    for known in (names, (*names[:2], names[3])) if words else (names,):
        given = {name: str(value) for name, value in zip(names, array, strict=True) if name in known}
        done, said = submit("a config.yaml", recipe="experiment.sbatch", RANK="0", **given)
        assert done.returncode == 0, done.stderr
        assert f"{said[0]} ".endswith(f"scripts/run_experiment.py a config.yaml {words} ".replace("  ", " "))


def test_an_evaluation_which_has_no_result_is_not_queued_again(submit, tmp_path):
    done, said = submit("--eval", "--resume", "checkpoint.pth", "--output_dir", tmp_path / "out")
    assert (done.returncode, len(said)) == (0, 2), done.stderr


def test_a_failed_run_is_not_queued_again(submit, tmp_path):
    done, said = submit(f"--output-dir={tmp_path}/out", STATUS="2")
    assert (done.returncode, len(said)) == (2, 1)


def test_the_output_folder_must_be_named(submit):
    done, said = submit("--epochs", "3")
    assert (done.returncode, said) == (2, [])
    assert "give --output_dir DIR" in done.stderr
