"""A run that is killed and resumed, and its curve.

    python benchmarks/killed_run.py DATA --out RUN [--after 420 480 360] [-- options of barlow pretrain]
    python benchmarks/killed_run.py --draw RUN --kills kills.json

Starts `barlow pretrain DATA --out RUN --resume`, sends SIGKILL after so many seconds, starts the same command again,
and so on; the last start runs to its end. Then draws loss and k-NN over the epochs, with the kills, to --picture, and
writes --kills: when each kill came, and the step that the next start continued from.
Drawing needs the extra `bench`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from barlow.run import Run
from barlow.training.checkpoint import load_latest

HERE = Path(__file__).parent


def kill_and_resume(command: Sequence[str], after: Sequence[float]) -> list[dict[str, Any]]:
    """Run a command that resumes itself, killing it after `after` seconds each; what every kill cost."""
    kills: list[dict[str, Any]] = []
    started = time.monotonic()
    for seconds in (*after, None):
        process = subprocess.Popen(command)
        try:
            process.wait(seconds)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            state = load_latest(Path(command[command.index("--out") + 1]) / "checkpoints")
            kept = state["trainer"]["step"] if state else 0
            kills.append({"seconds": round(time.monotonic() - started), "continued_from_step": kept})
    return kills


def draw(run: Run, kills: Sequence[dict[str, Any]], picture: Path) -> None:
    """Training loss by step, held-out loss and k-NN by validation, and a line where each kill was made good."""
    import matplotlib.pyplot as plt  # of this figure alone

    steps, checks = run.metrics("step"), run.metrics("validation")
    per_epoch = run.facts["steps_per_epoch"]
    figure, (losses, scores) = plt.subplots(2, 1, sharex=True, figsize=(7.2, 5.2), constrained_layout=True)
    losses.plot(
        [s["step"] / per_epoch for s in steps], [s["loss"] for s in steps], lw=1, color="#1f5f8b", label="train"
    )
    losses.plot([c["epoch"] for c in checks], [c["heldout_loss"] for c in checks], "o-", ms=3, lw=1, color="#c2571a",
                label="held out")  # fmt: skip
    losses.set_ylabel("loss")
    scored = [c for c in checks if "knn" in c]
    scores.plot([c["epoch"] for c in scored], [100 * c["knn"] for c in scored], "o-", ms=3, color="#3d7a45")
    scores.set(ylabel="k-NN accuracy, held out (%)", xlabel="epoch")
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        for number, kill in enumerate(kills):
            axes.axvline(kill["continued_from_step"] / per_epoch, color="#8a8d91", ls="--", lw=1,
                         label=None if number else "killed (SIGKILL)")  # fmt: skip
    losses.legend(frameon=False)
    figure.savefig(picture, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="what to train on")
    parser.add_argument("--out", type=Path, help="run folder")
    parser.add_argument("--after", type=float, nargs="+", default=[420, 480, 360], help="seconds of each life")
    parser.add_argument("--draw", type=Path, help="only draw this run")
    parser.add_argument("--kills", type=Path, default=HERE / "results" / "killed-run.json")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "images" / "killed-run.png")
    options, passed_on = parser.parse_known_args()
    if options.draw is None:
        if options.data is None or options.out is None:
            parser.error("DATA and --out are needed, or --draw RUN")
        passed_on = [text for text in passed_on if text != "--"]
        command = [sys.executable, "-m", "barlow", "pretrain", options.data, "--out", str(options.out), "--resume"]
        kills = kill_and_resume([*command, *passed_on], options.after)
        options.kills.write_text(json.dumps(kills, indent=1) + "\n")
    run = Run(options.draw or options.out)
    draw(run, json.loads(options.kills.read_text()), options.picture)


if __name__ == "__main__":
    main()
