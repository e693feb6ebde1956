"""The command `batchnorm`: typed configs to calls."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import torch

from .. import __version__
from ..algorithm2.insert import Removable
from ..algorithm2.recalibrate import Estimator
from ..errors import BatchNormError, Failure
from ..kernels.bindings import kernels_available
from ..memory import keep_memory
from .command import run_fold, run_insert, run_recalibrate

try:
    import tyro

    from ..paper.inception.config import InceptionConfig
    from ..paper.inception.jobs import VariantName, choose_jobs
    from ..paper.mnist.config import MnistConfig, config_from_json, config_to_json
    from ..paper.mnist.experiment import load_data
    from ..paper.mnist.sweep import check_sweep
    from ..paper.show.console import show_mnist, show_report, show_sweep
    from ..paper.training.processes import cores_each, joined
    from ..paper.training.run import Run
except ModuleNotFoundError as missing:
    if missing.name not in ("tyro", "rich", "matplotlib", "plotly"):
        raise
    sys.exit(f"batchnorm: the command needs {missing.name}. Install it with: pip install 'batchnorm[paper]'")


def mnist(
    config: Annotated[MnistConfig, tyro.conf.arg(name="")],
    out: Path | None = None,
    resume: Path | None = None,
    sweep: bool = False,
) -> None:
    """Figure 1 of the Batch Normalization paper (Sec. 4.1), computed here.

    Trains 784-100-100-100-10 with sigmoids on binary MNIST twice, with and without batch normalization, from the same
    weights and on the same batches, and writes a run folder: config.json, metrics.jsonl, figure1.png and .svg, and
    report.html, which opens without a network. Ctrl-C keeps and plots what is there; --resume goes on from it.

    Args:
        config: What decides the numbers.
        out: Folder to write, new or empty; by default the first free of runs/mnist-1, runs/mnist-2, …
        resume: Go on with this run, killed or stopped, under its own settings; its records become the same, to the
            bit, as if it had never stopped.
        sweep: Train both networks at a grid of learning rates and initial standard deviations, 3 seeds each, and draw
            a heat map of their test accuracy: 210 trainings, so give fewer --steps (10000 takes some half an hour).
            --seed is the first of the seeds.
    """
    keep_memory()
    if resume is None:
        if sweep:
            check_sweep(config)
        experiment, data = "sweep" if sweep else "mnist", load_data(config)
        run = Run.create(out, experiment, config_to_json(config))
    else:
        if out is not None or sweep or config != MnistConfig():
            raise BatchNormError(f"--resume {resume} goes on under that run's own settings; give no others beside it")
        run, experiment, saved = Run.open(resume)
        if experiment not in ("mnist", "sweep"):
            raise BatchNormError(f"{resume} is a run of {experiment!r}; batchnorm mnist resumes its own")
        config = config_from_json(saved)
        data = load_data(config)
    show = show_sweep if experiment == "sweep" else show_mnist
    with run.claimed():
        show(config, data, run)


def inception(
    config: Annotated[InceptionConfig, tyro.conf.arg(name="")],
    variant: Annotated[VariantName | None, tyro.conf.Positional] = None,
    out: Path | None = None,
    resume: Path | None = None,
) -> None:
    """Section 4.2 of the paper: Inception and its batch-normalized variants, on ImageNet or scaled down.

    Trains one variant, all seven of the comparison ("all") or the six of the ensemble ("ensemble"), each into a run
    folder: config.json, metrics.jsonl, its newest checkpoint and the one before. Ctrl-C ends with a checkpoint.

        batchnorm inception all --data fashion
        batchnorm inception bn-x30 --data /data/imagenet
        torchrun --nproc-per-node 8 -m batchnorm inception bn-x30 --data /data/imagenet --out runs/x30

    Under torchrun every process normalises its own mini-batch, as in the paper, and the gradients are averaged. Then
    --out must be named: where --max-restarts lets torchrun start a dead process again, the run in it goes on.

    Args:
        config: What decides the numbers.
        variant: Which network; leave it out with --resume.
        out: Folder to write, new or empty; by default the first free of runs/inception-1, runs/inception-2, …
        resume: Go on with this run, or with a folder of several, under its own settings; on the CPU with as many
            processes its records become the same, to the bit, as if it had never stopped.
    """
    from ..paper.show.progress import show_jobs  # with torchvision, which the other commands do without

    keep_memory()
    with joined() as processes:
        jobs = processes.share(lambda: choose_jobs(variant, config, out, resume))
        torch.set_num_threads(jobs[0].config.threads or cores_each())
        finished = show_jobs(jobs, processes)
        if not finished and processes.rank == 0:
            folder = jobs[0].folder if len(jobs) == 1 else jobs[0].folder.parent
            print(f"Stopped early. Go on with: batchnorm inception --resume {folder}")
    if not finished:
        sys.exit(130)  # as after any Ctrl-C: what comes after && wants whole runs


Runs = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN…")]


def evaluate(
    runs: Runs,
    data: str,
    crops: Literal[1, 144] = 1,
    fold: bool = True,
    workers: int | None = None,
) -> None:
    """Top-1 and top-5 of trained networks on the validation images, and of their ensemble (Sec. 4.2.3).

    Each run's newest checkpoint is evaluated with its batch normalization folded away (Alg. 2, line 11). Several runs
    are evaluated one by one, and together: the arithmetic mean of their class probabilities. What comes of it is
    printed, and added to evaluations.jsonl in the folder of the first run, where batchnorm report finds it.

    Args:
        runs: Folders that batchnorm inception made, of a run or of several.
        data: Folder with val, as in training, or fashion.
        crops: Of each image: the centre, or the paper's 144 (4 scales, 3 squares, 6 crops, mirrored).
        fold: Evaluate the folded network; --no-fold the one with its BN layers.
        workers: Processes that read images; by default one a core.
    """
    from ..paper.show.progress import show_evaluation

    show_evaluation(runs, data, crops, fold, workers)


def report(runs: Runs, out: Path | None = None) -> None:
    """Figures 2, 3 and 4 of the paper, from the records of runs alone.

    Writes figure2.png and .svg, and report.html, one page that opens without a network: accuracy against steps, the
    table of steps to the plain network's best, and the table of crops and ensembles, each beside the paper's.

    Args:
        runs: Folders that batchnorm inception made, of a run or of several; runs of one variant are its seeds.
        out: Folder to write, new or empty; by default the first free of runs/report-1, runs/report-2, …
    """
    show_report(runs, out)


Target = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODULE:FACTORY")]
Shape = Annotated[str, tyro.conf.arg(name="input", metavar="1x3x224x224")]


def fold(target: Target, shape: Shape, weights: Path | None = None, out: Path | None = None) -> None:
    """Compose every batch normalization of a network into its neighbours (Alg. 2, line 11, and beyond).

    Prints a row per batch normalization, the error measured on noise, and the latency before and after.

    Args:
        target: What makes the network, called without arguments, such as torchvision.models:resnet18.
        shape: Shape of the example input, with its batch axis.
        weights: A state_dict, .safetensors or written by torch.save; a file that would run code is refused.
        out: New file for the result: .pt2 (torch.export), .onnx, or .safetensors for its tensors alone.
    """
    run_fold(target, shape, weights, out)


def insert(
    target: Target,
    shape: Shape,
    weights: Path | None = None,
    where: tuple[str, ...] = (),
    remove: tuple[Removable, ...] = (),
    data: str | None = None,
    out: Path | None = None,
) -> None:
    """Batch-normalize a network before every nonlinearity that an affine layer feeds (Alg. 2, lines 1-5).

    Args:
        target: What makes the network, called without arguments, such as torchvision.models:vgg11.
        shape: Shape of the example input, with its batch axis.
        weights: A state_dict, .safetensors or written by torch.save; a file that would run code is refused.
        where: Only at layers of these names, or inside modules of these names.
        remove: Layers to take out (Sec. 4.2.1).
        data: MODULE:FACTORY of batches to measure; the new layers then start as the identity on them.
        out: New file for the state_dict of the result, .safetensors.
    """
    run_insert(target, shape, weights, out, where, remove, data)


def recalibrate(
    target: Target,
    data: str,
    weights: Path | None = None,
    estimator: Estimator = "pooled",
    out: Path | None = None,
) -> None:
    """Re-estimate the population statistics of every batch normalization (Alg. 2, line 10).

    Args:
        target: What makes the network, called without arguments, such as torchvision.models:resnet18.
        data: MODULE:FACTORY of the batches of the training set.
        weights: A state_dict, .safetensors or written by torch.save; a file that would run code is refused.
        estimator: pooled over all values, or the paper's mean over batches.
        out: New file for the state_dict of the result, .safetensors.
    """
    run_recalibrate(target, data, weights, out, estimator)


def main() -> None:
    """Run the command. An error that the user can mend is one line on stderr."""
    if sys.argv[1:] == ["--version"]:
        return print(f"batchnorm {__version__}, torch {torch.__version__}")
    if not kernels_available():  # pip shows what the build said only with -v
        print(
            "batchnorm: installed without its compiled CPU kernels: torch's own operations do their work, slower. "
            "Install a C++17 compiler (Debian, Ubuntu: apt install g++) and batchnorm again; pip install -v says why.",
            file=sys.stderr,
        )
    try:
        tyro.extras.subcommand_cli_from_dict(
            {
                "mnist": mnist,
                "inception": inception,
                "evaluate": evaluate,
                "report": report,
                "fold": fold,
                "insert": insert,
                "recalibrate": recalibrate,
            },
            prog="batchnorm",
            description="Batch Normalization, the whole of it, for PyTorch. --version tells what is installed.",
        )
    except Failure as error:
        sys.exit(f"batchnorm: {error}")
    except ModuleNotFoundError as missing:
        if missing.name not in ("torchvision", "PIL"):
            raise
        sys.exit(f"batchnorm: this needs {missing.name}. Install it with: pip install 'batchnorm[imagenet]'")
    except KeyboardInterrupt:
        sys.exit(130)
