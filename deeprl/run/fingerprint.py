"""Which networks a function of the user's own makes: a digest that changes with what they compute.

It is taken from the source of the function and of all that it and the classes of its modules reach (functions, classes
and plain values of the user's modules), from the modules' structure, and from the numbers that they hold as plain
attributes. Comments, formatting and docstrings do not count. What no source can be had of (the interactive prompt) is
told by the structure alone.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import re
import textwrap
import types
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, bytes, tuple, list, dict, set, frozenset, type(None))
_OTHERS = ("torch", "numpy", "deeprl", "builtins", "math", "collections", "typing", "functools", "jaxtyping")


def fingerprint(make: Any, modules: Sequence[nn.Module]) -> str:
    """Sixteen hex digits of the networks `modules` that `make` has made."""
    parts = [*_reached(make, set()), *(part for module in modules for part in _structure(module))]
    plain = re.sub(r" at 0x[0-9a-f]+", "", "\n".join(parts))  # addresses of objects, others in each process
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def _structure(module: nn.Module) -> Iterator[str]:
    """What a module and its children are, and the numbers that they hold beside their parameters."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        yield f"{name} {tuple(tensor.shape)} {tensor.dtype} {tensor.requires_grad}"
    seen: set[Any] = set()
    for name, child in module.named_modules():
        yield f"{name}: {type(child).__qualname__}({child.extra_repr()})"
        yield from _reached(type(child), seen)
        if type(child).__module__.startswith("torch."):
            continue
        for key, value in sorted(vars(child).items()):
            if key.startswith("_") or key == "training":
                continue
            if isinstance(value, Tensor | np.ndarray):
                array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
                yield f"{name}.{key} {array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
            elif isinstance(value, bool | int | float | str):
                yield f"{name}.{key} {value!r}"


def _reached(thing: Any, seen: set[Any]) -> Iterator[str]:
    """The sources of a function or class, and of what it reaches outside the libraries; plain values as they are."""
    if isinstance(thing, functools.partial):
        yield from (part for value in (*thing.args, *sorted(thing.keywords.items())) for part in _reached(value, seen))
        thing = thing.func
    thing = inspect.unwrap(thing) if callable(thing) else thing
    if isinstance(thing, _PLAIN):
        yield repr(sorted(thing, key=repr) if isinstance(thing, set | frozenset) else thing)
        return
    if isinstance(thing, types.MethodType):
        thing = thing.__func__
    if not isinstance(thing, type | types.FunctionType):
        thing = type(thing)  # a callable object
    if (getattr(thing, "__module__", None) or "").partition(".")[0] in _OTHERS or thing in seen:
        return
    seen.add(thing)
    yield _source(thing)
    functions = [thing] if isinstance(thing, types.FunctionType) else _methods(thing)
    if isinstance(thing, type):
        yield from (part for base in thing.__bases__ for part in _reached(base, seen))
    for function in functions:
        try:
            near = inspect.getclosurevars(function)
        except (TypeError, ValueError):  # a cell that is still empty
            continue
        for name, value in sorted({**near.globals, **near.nonlocals}.items()):
            if isinstance(value, _PLAIN):
                yield f"{name} = {value!r}"
            elif isinstance(value, type | types.FunctionType | functools.partial):
                yield from _reached(value, seen)


def _methods(thing: type) -> list[types.FunctionType]:
    return [value for _, value in sorted(vars(thing).items()) if isinstance(value, types.FunctionType)]


def _source(thing: Any) -> str:
    """The source of a function or class without what does not count; its name where there is none."""
    try:
        text = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        return str(thing.__qualname__)
    try:
        tree = ast.parse(text)
    except SyntaxError:  # a lambda in the midst of an expression
        return text.strip()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
