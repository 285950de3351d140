"""The shapes and types in the signatures of `deeprl`, checked at every call while the tests run.

jaxtyping binds the arguments of each call to the signature, checks them, and then checks all of them again beside the
result. Here each of them is checked once, with the same outcome: within one call a letter stands for one size, in the
arguments and in the result. The functions within functions, which are new at each call of the outer one, share their
checks, which jaxtyping compiles anew.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any

import jaxtyping
import torch
from beartype import BeartypeConf, beartype
from jaxtyping._decorator import _destring_annotation, _make_fn_with_signature
from jaxtyping._storage import pop_shape_memo, push_shape_memo

Check = Callable[..., Any]

_typechecker = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
_known: dict[int, tuple[CodeType, Check, Check]] = {}  # the checks of functions by the `id` of their code


def install() -> None:
    """Check each function and each dataclass of `deeprl` that is imported from now on."""
    jaxtyping.jaxtyped = lambda typechecker: checked  # which the hook puts before each of them
    jaxtyping.install_import_hook("deeprl", None)


def checked(part: Any) -> Any:
    """A function, or a dataclass, whose arguments and result are checked; other classes as they are."""
    if isinstance(part, type):
        if dataclasses.is_dataclass(part):
            part.__init__ = _checked(part.__init__)
        return part
    if isinstance(part, classmethod | staticmethod):
        return type(part)(_checked(part.__func__))
    if isinstance(part, property):
        return property(*(f and _checked(f) for f in (part.fget, part.fset, part.fdel)))
    return _checked(part)


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    code = function.__code__
    if id(code) not in _known:
        _known[id(code)] = code, *_checks(function)
    _, of_arguments, of_result = _known[id(code)]

    @functools.wraps(function)
    def with_checks(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # by Dynamo, which cannot look into the checks
            return function(*args, **kwargs)
        push_shape_memo({})  # no letter stands for a size yet
        try:
            of_arguments(*args, **kwargs)
            return of_result(result=function(*args, **kwargs))
        finally:
            pop_shape_memo()

    return with_checks


def _checks(function: Callable[..., Any]) -> tuple[Check, Check]:
    """What takes the arguments of a function, and what returns the `result` it is given; each raises TypeCheckError."""
    signature, names = inspect.signature(function), function.__globals__
    parameters = [p.replace(annotation=_resolved(p.annotation, names)) for p in signature.parameters.values()]
    arguments = inspect.Signature(parameters, return_annotation=Any)
    about = function.__name__, function.__qualname__, function.__module__
    of_arguments = _typechecker(_make_fn_with_signature(*about, arguments, output=False))

    def of_result(*, result: Any) -> Any:
        return result

    of_result.__annotations__["return"] = _resolved(signature.return_annotation, names)
    of_result.__name__, of_result.__qualname__, of_result.__module__ = about
    return of_arguments, _typechecker(of_result)


def _resolved(annotation: Any, names: dict[str, Any]) -> Any:
    return Any if annotation is inspect.Signature.empty else _destring_annotation(annotation, names)
