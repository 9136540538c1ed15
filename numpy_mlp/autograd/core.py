"""The computation graph: values, the operations between them, and the walk back.

A graph has two kinds of nodes. A :class:`TensorNode` holds an array; an :class:`OpNode` is one
application of an :class:`Op`, and links the nodes that went in to those that came out. Calling an
op builds the graph; :meth:`TensorNode.backward` walks it from a scalar back to every node that the
scalar depends on, applying the chain rule at each op:

    ∂L/∂input = Σ over the ops that use it: Op.backward(∂L/∂output)

Names and behaviour are those of *vugrad*, the library of the deep-learning course of the Vrije
Universiteit Amsterdam (P. Bloem).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike

from numpy_mlp.autograd.context import Context, no_grad, recording
from numpy_mlp.autograd.gradients import Array, owner_of, sum_to
from numpy_mlp.autograd.operators import Operators
from numpy_mlp.modules.module import as_real, underflow_is_zero

__all__ = ["ClearedGraphError", "Context", "Module", "Op", "OpNode", "TensorNode", "no_grad"]

_numbers = itertools.count()  # ops are numbered in the order they are applied


class ClearedGraphError(RuntimeError):
    """A graph was used after :meth:`TensorNode.clear` had taken it apart."""


class TensorNode(Operators):
    """A value in the graph, and the gradient of the loss with respect to it.

    Args:
        value: an array or a number. float32 and float64 stay, float16 becomes float32, all else
            float64.
        source: the :class:`OpNode` that made it; None for what a user makes.
        name: for pictures and error messages.
        requires_grad: whether a gradient is wanted. Ops on nodes that want none are not recorded.

    Attributes:
        grad: ∂L/∂value, of the shape and dtype of ``value``: zeros until :meth:`backward`, to which
            each further ``backward`` adds, until :meth:`zero_grad`. Once it was looked at, it
            stays the same array, until it is set.
    """

    def __init__(
        self,
        value: Any,
        source: OpNode | None = None,
        name: str | None = None,
        *,
        requires_grad: bool = True,
    ) -> None:
        self.value: Array = as_real(value, "a TensorNode")
        self.source, self.name, self.requires_grad = source, name, requires_grad
        self._grad: Array | None = None
        self._shared = False  # whether other nodes hold the array in _grad too
        self._seen = False  # whether a user may hold it
        self._cleared = False

    @property
    def grad(self) -> Array:
        """∂L/∂value; an array of zeros where nothing has arrived."""
        if self._grad is None:
            self._grad = np.zeros_like(self.value)
        elif self._shared:  # copied when it is looked at, which most of them never are
            self._grad = self._grad.copy()
        self._shared, self._seen = False, True
        return self._grad

    @grad.setter
    def grad(self, grad: Array | None) -> None:
        self._grad = None if grad is None else np.array(grad)
        self._shared = self._seen = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.value.dtype

    def size(self, dim: int | None = None) -> Any:
        """Return the shape, or the length of one dimension."""
        return self.value.shape if dim is None else self.value.shape[dim]

    def backward(self) -> None:
        """Add ∂self/∂node to the ``grad`` of every node that this scalar depends on.

        Each op is visited once, when all that its outputs are used for has been: ops are taken
        latest first, and an op is always applied after those whose results it uses.

        Raises:
            ValueError: the node holds more than one number, depends on nothing that wants a
                gradient, or is a copy of a node in a graph.
            ClearedGraphError: a part of the graph was cleared.
        """
        if self.value.size != 1:
            raise ValueError(
                f"backward() starts from a scalar, this node has shape {self.size()}; sum it first"
            )
        if not self.requires_grad:
            raise ValueError(f"{self} does not depend on anything that wants a gradient")
        if self.source is not None and all(node is not self for node in self.source.outputs):
            raise ValueError(f"{self} is a copy, which is not part of the graph; use the original")
        _Walk([(self, np.ones_like(self.value))]).run(_ops_below(self))

    def zero_grad(self) -> None:
        """Set the gradients of this node, and of all that it depends on, to zero."""
        below = (node for op in _ops_below(self) for node in (*op.inputs, *op.outputs))
        for node in (self, *below):
            if node._seen and node._grad is not None:
                node._grad[...] = 0
            else:
                node._grad = None

    def clear(self) -> None:
        """Take the graph below apart, so that what it remembers is freed at once.

        Values and gradients stay. Nodes that were made by an op cannot be walked through again.
        """
        for op in _ops_below(self, cleared_too=True):
            for node in op.outputs:
                node.source, node._cleared = None, True
            op.clear()

    def _apply(self, name: str, *inputs: Any, **constants: Any) -> Self:
        """Apply the op called ``name``, numbers and arrays among its inputs made into nodes."""
        nodes = [x if isinstance(x, TensorNode) else _constant(x, self.dtype) for x in inputs]
        result: Self = OPS[name].do_forward(*nodes, **constants)
        return result

    def __repr__(self) -> str:
        name = f"{self.name}, " if self.name else ""
        source = None if self.source is None else self.source.op.__name__
        return f"TensorNode[{name}size {self.size()}, source {source}]"


class OpNode:
    """One application of an op.

    Attributes:
        op: the :class:`Op`, a class.
        context: what its forward pass remembered.
        inputs: the nodes that went in.
        outputs: the nodes that came out and are still in use.
        number: ops are numbered as they are applied.
    """

    __slots__ = ("_outputs", "_shapes", "context", "inputs", "number", "op")

    def __init__(self, op: type[Op], context: Context, inputs: tuple[TensorNode, ...]) -> None:
        self.op, self.context, self.inputs = op, context, inputs
        self.number = next(_numbers)
        # Weak: a node keeps the op that made it, and a circle would keep both until the garbage
        # collector comes round. Without one, a step's memory is freed with its loss.
        self._outputs: tuple[weakref.ref[TensorNode], ...] = ()
        self._shapes: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...] = ()

    @property
    def outputs(self) -> list[TensorNode]:
        """The nodes that came out, less those that nobody holds any more."""
        return [node for ref in self._outputs if (node := ref()) is not None]

    def produce(self, values: tuple[Array, ...]) -> list[TensorNode]:
        """Make the outputs and remember them."""
        nodes = [TensorNode(value, source=self) for value in values]
        self._outputs = tuple(weakref.ref(node) for node in nodes)
        self._shapes = tuple((node.value.shape, node.value.dtype) for node in nodes)
        return nodes

    def backward(self) -> None:
        """Go on backwards from this op: its outputs' ``grad`` are taken as they are."""
        if not self.inputs:
            raise ClearedGraphError(f"{self} is part of a graph that clear() took apart")
        outputs = self.outputs
        if not outputs:
            raise ValueError(f"nobody holds an output of {self} any more, and its gradient with it")
        walk = _Walk([(node, node.grad) for node in outputs])
        ops = [op for node in outputs[:1] for op in _ops_below(node)]
        for node in outputs:
            walk.nodes.pop(id(node))  # their gradients are where they belong already
        walk.holders.update((owner_of(node.grad), node) for node in outputs)
        walk.run(ops)

    def gradients(self, goutputs: Sequence[Array | None]) -> tuple[Array | None, ...]:
        """Return ∂L/∂input for each input, given ∂L/∂output for each output (None for zeros)."""
        # An array on its way may be on its way to other nodes too, and one that an op returns may
        # be one it keeps: an op that does not declare to be pure gets and gives copies.
        pure = self.op.pure
        upstream = [
            np.zeros(shape, dtype) if g is None else g if pure else g.copy()
            for g, (shape, dtype) in zip(goutputs, self._shapes, strict=True)
        ]
        ginputs = self.op.backward(self.context, *upstream)
        ginputs = tuple(ginputs) if isinstance(ginputs, tuple | list) else (ginputs,)
        if len(ginputs) != len(self.inputs):
            raise ValueError(
                f"{self.op.__name__}.backward returned {len(ginputs)} gradients for "
                f"{len(self.inputs)} inputs"
            )
        for i, (node, grad) in enumerate(zip(self.inputs, ginputs, strict=True)):
            if grad is None and node.requires_grad:
                raise ValueError(
                    f"{self.op.__name__}.backward returned no gradient for input {i}, which wants "
                    f"one"
                )
        return ginputs if pure else tuple(g if g is None else np.array(g) for g in ginputs)

    def zero_grad(self) -> None:
        """Set the gradients of the inputs, and of all that they depend on, to zero."""
        for node in self.inputs:
            node.zero_grad()

    def clear(self) -> None:
        """Let go of inputs, outputs and what was remembered."""
        self.inputs, self._outputs, self.context = (), (), Context()

    def __repr__(self) -> str:
        return f"OpNode[{self.op.__name__}]"


class Op:
    """A function on arrays and its backward pass: two static methods, never instantiated.

    A subclass writes

    - ``forward(context, *arrays, **constants)``, which returns an array or a tuple of them and puts
      what ``backward`` will need into ``context``;
    - ``backward(context, *goutputs)``, which returns ∂L/∂input for each input, given ∂L/∂output for
      each output. Where NumPy broadcast an input, the gradient may keep the output's shape: the
      engine sums it back.

    Neither may modify its arguments.

    Attributes:
        pure: whether ``backward`` writes neither to what it was given nor, later on, to what it
            returned, so that the engine need not copy. A class declares it for itself, ``class
            Add(Op, pure=True)``, and no subclass inherits it, which may write another ``backward``.
    """

    pure: ClassVar[bool] = False

    def __init_subclass__(cls, *, pure: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.pure = pure

    @classmethod
    @underflow_is_zero
    def do_forward(cls, *inputs: TensorNode, **constants: Any) -> Any:
        """Apply the op to nodes; return the output node, or a list of them where there are several.

        Args:
            inputs: the nodes.
            constants: passed to ``forward`` as they are; nothing is differentiated by them.

        Raises:
            TypeError: an input is not a node.
        """
        for node in inputs:
            if not isinstance(node, TensorNode):
                raise TypeError(
                    f"{cls.__name__} takes TensorNodes, got {type(node).__name__}; wrap the "
                    f"value: TensorNode(value)"
                )
        needs = tuple([node.requires_grad for node in inputs])
        context = Context(needs)
        values = cls.forward(context, *[node.value for node in inputs], **constants)
        values = values if isinstance(values, tuple) else (values,)
        if recording.on and any(needs):
            nodes = OpNode(cls, context, inputs).produce(values)
        else:
            nodes = [TensorNode(value, requires_grad=False) for value in values]
        return nodes[0] if len(nodes) == 1 else nodes

    @staticmethod
    def forward(context: Context, *inputs: Any, **constants: Any) -> Any:
        """Return the output, or a tuple of outputs."""
        raise NotImplementedError

    @staticmethod
    def backward(context: Context, *goutputs: Any) -> Any:
        """Return the gradient of each input, given that of each output."""
        raise NotImplementedError


OPS: dict[str, type[Op]] = {}
"""Our ops by name, for the operators of a node; :mod:`numpy_mlp.autograd.ops` fills it."""


class Module:
    """Parameters, and a function of them: ``forward`` builds a graph, which knows its way back."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output."""
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return :meth:`forward` of the arguments."""
        return self.forward(*args, **kwargs)

    def parameters(self) -> list[TensorNode]:
        """Return the nodes that training updates."""
        return []


def _constant(value: Any, dtype: DTypeLike) -> TensorNode:
    """Return a node without gradient; numbers take the type of what they are mixed with."""
    array = np.asarray(value)
    if array.ndim == 0 or array.dtype.kind in "biu":
        array = array.astype(dtype)
    return TensorNode(array, requires_grad=False)


def _ops_below(node: TensorNode, *, cleared_too: bool = False) -> list[OpNode]:
    """Return each op that ``node`` depends on once, latest first.

    An op is applied after those whose results it uses, so this order is a topological one.
    """
    found: dict[int, OpNode] = {}
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current._cleared and not cleared_too:
            raise ClearedGraphError(
                f"{current} is part of a graph that clear() took apart; compute it again, or "
                f"go on from its value with TensorNode(node.value)"
            )
        op = current.source
        if op is not None and op.number not in found:
            found[op.number] = op
            waiting.extend(op.inputs)
    return [found[number] for number in sorted(found, reverse=True)]


class _Walk:
    """One backward pass.

    Gradients on their way are kept here, apart from what earlier passes left in ``grad``: a second
    pass over the same graph must not take them for its own.
    """

    def __init__(self, seeds: Sequence[tuple[TensorNode, Array]]) -> None:
        self.gradients: dict[int, Array] = {}  # by id of the node
        self.summed: set[int] = set()  # nodes whose gradient is an array of the walk's own
        self.nodes: dict[int, TensorNode] = {}
        self.holders: dict[int, TensorNode] = {}  # whose gradient an array is, by the array's id
        for node, grad in seeds:
            self._add(node, grad)

    @underflow_is_zero
    def run(self, ops: Sequence[OpNode]) -> None:
        """Take the ops in the order given, and leave every finished gradient in its node."""
        for op in ops:
            outputs = [ref() for ref in op._outputs]
            upstream = [None if n is None else self.gradients.get(id(n)) for n in outputs]
            if all(g is None for g in upstream):
                continue
            for node, grad in zip(op.inputs, op.gradients(upstream), strict=True):
                if node.requires_grad and grad is not None:
                    self._add(node, sum_to(grad, node.value, op.op.__name__))
            for output in outputs:
                if output is not None:
                    self._deliver(output)
        for node in list(self.nodes.values()):
            self._deliver(node)

    def _add(self, node: TensorNode, grad: Array) -> None:
        """Add a contribution; the arrays that ops return are theirs and are never written to."""
        key = id(node)
        if key not in self.gradients:
            self.gradients[key], self.nodes[key] = grad, node
        elif key in self.summed:
            self.gradients[key][...] += grad
        else:
            # asarray: the sum of two arrays without dimensions would be a number.
            self.gradients[key] = np.asarray(self.gradients[key] + grad)
            self.summed.add(key)

    def _deliver(self, node: TensorNode) -> None:
        """Put the finished gradient of a node into its ``grad``."""
        key = id(node)
        if key not in self.nodes:
            return
        del self.nodes[key]
        grad = self.gradients[key]
        if node._grad is not None:  # in place where a user may hold it
            out = node._grad if node._seen else None
            node._grad, node._shared = np.asarray(np.add(node._grad, grad, out=out)), False
            return
        holder = self.holders.setdefault(owner_of(grad), node)
        node._grad, node._seen = grad.copy() if holder._seen else grad, False
        node._shared = not grad.flags.writeable or holder is not node
        holder._shared = node._shared and not holder._seen
