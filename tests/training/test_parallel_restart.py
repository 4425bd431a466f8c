"""A training run whose processes are killed, and which goes on in another number of them: the losses are the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import parallel_jobs as jobs
import pytest
import torch
from parallel_jobs import STEPS, trained_by
from test_parallel import CLOSE, SECONDS, launch

from inscape.training.parallel import Parallel


def alone(folder: Path) -> list[float]:
    return trained_by(Parallel.start(device="cpu"), folder)


def same(losses: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=0, atol=CLOSE)


def kill(folder: Path, rank: int, step: int) -> None:
    """Say which process dies when it is about to make the batch of a step."""
    (folder / "kill").write_text(json.dumps([rank, step]))


def states(folder: Path) -> set[str]:
    return {path.name for path in (folder / "run" / "state").iterdir()}


def killed(folder: Path, world: int, rank: int, step: int) -> None:
    """Run until `rank` dies when it is about to make the batch of `step`; the other processes end with it."""
    kill(folder, rank, step)
    assert launch("trained", world, folder, expected=1) == {"trained": []}
    for name in ("kill", "meet"):
        (folder / name).unlink()
    # The next batch is made while a step is at work, so the one before that is the last that was saved.
    assert states(folder) == {f"step-{step - 1}"}


def test_killed_twice_then_finished_alone(tmp_path: Path) -> None:
    """Two processes, the same number again, then one."""
    (tmp_path / "whole").mkdir()
    expected = alone(tmp_path / "whole")
    assert len(set(expected)) == len(expected) == 2 * STEPS
    run = tmp_path / "broken"
    run.mkdir()
    killed(run, world=2, rank=1, step=4)
    # A save that was cut short leaves a folder of which nothing is read.
    torn = run / "run" / "state" / "step-4.part"
    shutil.copytree(run / "run" / "state" / "step-3", torn)
    (torn / ".metadata").unlink()
    killed(run, world=2, rank=0, step=8)
    same(alone(run), expected)
    assert states(run) == {f"step-{2 * STEPS}"}


@pytest.mark.slow
def test_killed_and_started_again_with_more_processes(tmp_path: Path) -> None:
    """Two data shards, then two data shards of two tensor-parallel processes each, then two again."""
    (tmp_path / "whole").mkdir()
    expected = alone(tmp_path / "whole")
    killed(tmp_path, world=2, rank=0, step=3)
    killed(tmp_path, world=4, rank=2, step=6)
    for result in launch("trained", 2, tmp_path)["trained"]:
        same(result["losses"], expected)


@pytest.mark.slow
def test_torchrun_ends_with_the_process_that_was_killed_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    expected = alone(tmp_path / "whole")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [jobs.__file__, "trained", "2", str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def torchrun() -> int:
        with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            try:
                _, errors = process.communicate(timeout=SECONDS)
            finally:
                # All of them are in one session: none is left, whatever happened.
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    left = False
                else:
                    left = True
        assert not left, errors[-4000:]
        return process.returncode

    kill(tmp_path, rank=1, step=5)
    assert torchrun() != 0
    assert states(tmp_path) == {"step-4"}
    (tmp_path / "kill").unlink()
    assert torchrun() == 0
    for rank in range(2):
        same(json.loads((tmp_path / f"trained-{rank}.json").read_text())["losses"], expected)
