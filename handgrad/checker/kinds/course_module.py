"""Modules of the courses: ``forward(x)``, ``backward(dout)``, parameters and their gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from handgrad.checker.candidates import Candidate, Kind, ModuleKind, fits
from handgrad.checker.check import check
from handgrad.checker.guesses import NAMES, PARAMETER, Made, choices, make, parameters_of, required
from handgrad.checker.kinds.loss import Loss
from handgrad.checker.kinds.module_session import RATES, ModuleSession
from handgrad.checker.probe import Probe, draw
from handgrad.checker.subject import Array, Subject
from handgrad.user_code.parameters import Parameter, find_parameters, is_module, loose_arrays


def module_subjects(probe: Probe) -> list[Subject]:
    """Return a module of the courses, or a loss, with inputs that it takes.

    Raises:
        NoInputError: none of the inputs that were tried could be run.
        Exception: whatever the constructor raises.
    """
    arguments = list(choices(probe))
    best: tuple[tuple[bool, bool], list[Subject]] | None = None
    errors: list[Exception] = []
    for number, chosen in enumerate(arguments):
        label = f"{number} "
        if probe.like is not None and not probe.like.layout.startswith(label):
            continue
        try:
            subjects = _kind(probe, make(probe, chosen), label).subjects()
        except Exception as error:
            errors.append(error)
            continue
        main = subjects[0]
        if probe.like is not None or len(arguments) == 1:
            return subjects
        # An array that has no gradient is rather a number, unless somebody gave it.
        meant = probe.given.arguments or len(main.variables) > len(main.inputs)
        if meant and _passes(main):
            return subjects
        rank = (fits(main, main.inputs), meant or number == len(arguments) - 1)
        if best is None or rank > best[0]:
            best = rank, subjects
    if best is not None:
        return best[1]
    raise errors[0 if probe.given.arguments else -1]


def _kind(probe: Probe, made: Made, label: str) -> Kind:
    template = made.template
    mode = getattr(template, "eval" if probe.point.evaluation else "train", None)
    if callable(mode):
        mode()
    names = [p.name for p in required(parameters_of(template.forward))] or ["x"]
    takes = len([p for p in required(parameters_of(template.backward)) if p.name not in RATES])
    if len(names) == 2 and (takes == 2 or names[1].lower() in NAMES["target"]):
        return Loss(probe, made, names, takes, label)
    return CourseModule(probe, made, label)


def _passes(subject: Subject) -> bool:
    """Say whether all gradients of a subject are right."""
    try:
        with np.errstate(all="ignore"):
            findings = check(subject, np.random.default_rng(2), lambda *_: ("", ""))
    except (Exception, SystemExit):
        return False
    return all(finding.passed for finding in findings)


class CourseModule(ModuleKind):
    """A module."""

    name = "module"

    def __init__(self, probe: Probe, made: Made, label: str) -> None:
        super().__init__(probe, made, label)
        self.parameters = find_parameters(made.template)

    def start(self, *more: Parameter) -> ModuleSession:
        """Begin a session, with more parameters."""
        return ModuleSession(self.made, [*self.parameters, *more], tuple(self.names))

    def own(self) -> dict[str, Array]:
        """Return the parameters that the module was made with."""
        return {p.name: np.asarray(p.value(self.made.template), float) for p in self.parameters}

    def subject(self, candidate: Candidate) -> Subject:
        """Return the module at an input, with what has to be said about it."""
        subject = super().subject(candidate)
        session = self.start()
        subject.upstream = not session.is_loss(candidate.variables)
        outputs = session.forward(candidate.variables)
        no_layer = NAMES["target"] if all(out.size == 1 for out in outputs) else set()
        subject.optional = frozenset(
            n for n in self.names[1:] if n.lower() in no_layer | NAMES["mask"]
        )
        for name in session.rates:
            text = f"backward was given a {name} of 0: what it updates by itself was not checked"
            subject.notes.append(text)
        subject.layers = self._layers(self.parameters)
        self._look_at_loose_arrays(subject)
        return subject

    def _layers(self, parameters: Sequence[Parameter]) -> list[str]:
        owners = [p.owner(self.made.template) for p in parameters if p.path]
        return sorted({type(owner).__name__ for owner in owners if is_module(owner)})

    def _look_at_loose_arrays(self, subject: Subject) -> None:
        """Take for parameters what is kept as ``W`` with its gradient as ``dW``; note the rest."""
        template = self.made.template
        loose = [p for p in loose_arrays(template) if p.name not in subject.inputs]
        session = self.start(*loose)
        try:
            own = {p.name: p.value(template) for p in loose}
            outputs = session.forward(subject.variables | own)
            gradients = session.backward(tuple(np.ones(out.shape) for out in outputs))
        except (Exception, SystemExit):  # the check itself will say so
            return
        known = {p.name for p in session.parameters}
        for late in loose_arrays(session.module):
            made = late.name not in known and PARAMETER.fullmatch(str(late.key))
            if made and late.gradient(session.module) is not None:
                text = "is made by forward and was not checked: the constructor is where to make it"
                subject.notes.append(f"{late.name} {text}")
        trained = [p for p in loose if gradients[p.name] is not None]
        for parameter in loose:
            # What is updated in backward has a note already.
            if parameter in trained or session.rates:
                continue
            if self._matters(parameter, subject, outputs):
                self._note(parameter, subject)
        if trained:
            rng = self.probe.rng
            subject.variables |= {p.name: draw(rng, p.value(template).shape) for p in trained}
            subject.start = lambda: self.start(*trained)
            subject.layers = self._layers([*self.parameters, *trained])

    def _matters(self, parameter: Parameter, subject: Subject, outputs: Sequence[Array]) -> bool:
        """Say whether the outputs change with an array."""
        other = self.start()
        value = parameter.value(other.module)
        parameter.set(other.module, value + 0.1 * (1 + np.abs(value)))
        with contextlib.suppress(Exception):
            pairs = zip(other.forward(subject.variables), outputs, strict=True)
            return not all(np.array_equal(a, b) for a, b in pairs)
        return False

    def _note(self, parameter: Parameter, subject: Subject) -> None:
        word: Any = parameter.key if isinstance(parameter.key, str) else parameter.holder
        if PARAMETER.fullmatch(word) or not is_module(parameter.owner(self.made.template)):
            subject.ungraded.append(parameter.name)
        else:
            text = "changes the output and has no gradient: taken for a constant"
            subject.notes.append(f"{parameter.name} {text}")
