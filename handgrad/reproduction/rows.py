"""What is reproduced: a table of training commands, with what the courses' reports say of them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from handgrad.backends.registry import NETWORKS, Network
from handgrad.runs.command_line import parse_command_line
from handgrad.runs.settings import TrainSettings


@dataclass(frozen=True)
class Experiment:
    """A row: a training command, run for several seeds.

    Attributes:
        name: of the row.
        command: as typed, without data folder and seed.
        said: what the report says; a number is an accuracy, on the test images or on those that
            are named.
        minutes: of one seed, roughly, on two cores; decides who goes first.
        quick: options that shorten the training to some seconds.
        seeds: one run each.
        figure: whether curves are drawn.
    """

    name: str
    command: str
    said: str
    minutes: float
    quick: str
    seeds: tuple[int, ...] = (0,)
    figure: bool = True

    @property
    def reported(self) -> float | None:
        """The accuracy that the report gives, where it does."""
        number = re.search(r"\d\.\d+", self.said)
        return None if number is None else float(number[0])

    @property
    def measure(self) -> str:
        """``test`` or ``validation``: which accuracy was reported."""
        return "validation" if "validation" in self.said else "test"

    @property
    def network(self) -> Network:
        """What the command trains."""
        return NETWORKS[self.command.split()[0].removeprefix("train-")]

    def arguments(self, seed: int, quick: bool) -> list[str]:
        """Return the command's arguments, without data and output folder."""
        shortened = shlex.split(self.quick) if quick else []
        return [*shlex.split(self.command)[1:], *shortened, "--seed", str(seed)]

    def settings(self, seed: int, quick: bool) -> TrainSettings:
        """Return the settings that the command has."""
        kind, presets = self.network.settings, self.network.presets
        return parse_command_line(kind, presets, "", "", self.arguments(seed, quick)).settings


@dataclass(frozen=True)
class Section:
    """A report, or what goes beyond them.

    Attributes:
        title: heading.
        about: paragraphs above the table.
        experiments: the rows.
        notes: paragraphs below the table.
    """

    title: str
    about: str
    experiments: tuple[Experiment, ...]
    notes: str = ""


_MLP = "--max-steps 60 --eval-every 30"
_CONVNET = "--max-steps 15 --eval-every 5 --eval-splits"  # one evaluation, at the end: it is long
_MNIST = "--max-steps 60 --eval-every 30"
_WARM = f"{_MLP} --warmup-steps 20"  # of presets that warm up for longer than that
_FEW = "--max-steps 4 --warmup-steps 1 --widths 8 8 8"
_SEEDS = (0, 1, 2)
_TORCH = "train-mlp-pytorch --precision float32"  # as the NumPy network, on every machine
_REPORT = f"{_TORCH} --preset uva-report"

_UVA = Section(
    "University of Amsterdam, assignment 1 of 2018",
    "CIFAR-10, test accuracy after the last step. The assignment asks for about 0.46 of the MLP "
    "with its default settings and for about 0.75 of the convolutional network; a student's report "
    "goes from the default to its best network, 0.52, one change and one figure after another, and "
    "ends before the convolutional network (its graphics card ran out of memory) and before the "
    "BatchNorm of its own was trained in a network.",
    (
        Experiment("numpy-mlp", "train-mlp-numpy --preset uva-2018",
                   "about 0.46", 0.3, _MLP, _SEEDS),
        Experiment("torch-mlp", f"{_TORCH} --preset uva-2018", "about 0.46", 0.4, _MLP, _SEEDS),
        Experiment("torch-mlp-sgd-lr", f"{_TORCH} --preset uva-2018 --lr 2e-4",
                   "not in it", 0.4, _MLP, _SEEDS),
        Experiment("torch-mlp-200", f"{_REPORT} --hidden-dims 200 --lr 2e-3 --max-steps 1500",
                   "a figure", 0.5, _MLP, _SEEDS),
        Experiment("torch-mlp-lr", f"{_REPORT} --hidden-dims 200 --lr 2e-4 --max-steps 1500",
                   "a figure", 0.5, _MLP, _SEEDS),
        Experiment("torch-mlp-3000", f"{_REPORT} --hidden-dims 200 --lr 2e-4 --max-steps 3000",
                   "a figure", 0.9, _MLP, _SEEDS),
        Experiment("torch-mlp-best", _REPORT, "0.52", 1, _MLP, _SEEDS),
        Experiment("convnet", "train-convnet --preset uva-2018", "about 0.75", 15, _CONVNET),
        Experiment("convnet-batchnorm", "train-convnet --preset uva-2018 --norm manual",
                   "not finished", 14, _CONVNET),
    ),
    "The report's figures are read as changes that add up: 200 hidden units; with them a learning "
    "rate of 2e-4; with both 3,000 steps; at last three hidden layers of 200, 200 and 100. All of "
    "these with Adam, as its best network: with the default's SGD, `torch-mlp-sgd-lr`, a rate of "
    "2e-4 loses accuracy instead.\n\n"
    "`convnet-batchnorm` trains with the assignment's own BatchNorm, whose backward pass is "
    "written by hand. That its gradients are right is not for a training to show: "
    "`python -m pytest tests/custom_modules` compares them with finite differences and with "
    "PyTorch's.",
)  # fmt: skip

_VU = Section(
    "Vrije Universiteit Amsterdam, assignment 2",
    "MNIST. The report gives the accuracy on the last 5,000 training images for the first three, "
    "networks on the computation-graph engine, and on the test images for the other two, in "
    "PyTorch, which hold out a random tenth of the training images here. Validation accuracy is "
    "that after the last epoch; test accuracy is that of the weights that were best in validation.",
    (
        Experiment("vu-sigmoid", "train-mlp-numpy --preset vu-sigmoid",
                   "0.972 (validation)", 3, _MNIST, _SEEDS),
        Experiment("vu-relu", "train-mlp-numpy --preset vu-relu",
                   "0.956 (validation)", 3, _MNIST, _SEEDS),
        Experiment("vu-momentum", "train-mlp-numpy --preset vu-momentum",
                   "0.977 (validation)", 3, _MNIST, _SEEDS),
        Experiment("vu-mlp", "train-mlp-pytorch --preset vu-mnist", "0.981 (test)", 8, _MNIST),
        Experiment("vu-convnet", "train-convnet --preset vu-mnist", "0.994 (test)", 10, _MNIST),
    ),
    "What two numbers, one of sigmoid and one of ReLU, leave open is told in "
    "`docs/mnist-mlps.md`.",
)  # fmt: skip

_BEYOND = Section(
    "Beyond the reports",
    "The best that the networks here reach on the same images: the NumPy modules, the graph "
    "engine, and PyTorch. Their settings were chosen on validation images, and the two accuracies "
    "are as above; where no validation accuracy stands, all training images were trained on.",
    (
        Experiment("numpy-mnist", "train-mlp-numpy --preset mnist",
                   "–", 0.4, _MNIST, _SEEDS, figure=False),
        Experiment("numpy-best", "train-mlp-numpy --preset best",
                   "–", 5, _MLP, _SEEDS, figure=False),
        Experiment("vu-best", "train-mlp-numpy --preset vu-best", "–", 6, _MNIST, figure=False),
        Experiment("torch-best", "train-mlp-pytorch --preset best", "–", 7, _WARM, figure=False),
        Experiment("torch-best-mnist", "train-convnet --preset best-mnist",
                   "–", 8, _WARM, figure=False),
        Experiment("preact-resnet", "train-convnet --preset uva-2018 --model preact-resnet",
                   "–", 16, _CONVNET, figure=False),
    ),
    "`preact-resnet` has the settings of `convnet`, but for the network.",
)  # fmt: skip

_BY_HAND = Section(
    "Convolutions by hand",
    "Convolutional networks in NumPy, every backward pass written by hand. `numpy-vgg` is "
    "`convnet` above without PyTorch; `numpy-fast` and `numpy-quick` follow a recipe that was "
    "tuned on validation images and then trained on all training images.",
    (
        Experiment("numpy-vgg", "train-convnet-numpy --preset uva-2018",
                   "about 0.75", 15, _CONVNET),
        Experiment("numpy-quick", "train-convnet-numpy --preset quick",
                   "–", 4, _FEW, figure=False),
        Experiment("numpy-fast", "train-convnet-numpy --preset fast", "–", 12, _FEW, _SEEDS),
    ),
    "Where a second test accuracy stands, it is that of the mean of several views of each image: "
    "its mirror image, and both shifted by a pixel.",
)  # fmt: skip

SECTIONS = (_UVA, _VU, _BEYOND, _BY_HAND)
