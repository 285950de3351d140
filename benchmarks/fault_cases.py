"""The cases of damaged files, made from the files that an unfinished run has, so that they follow its format."""

from __future__ import annotations

import functools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fault_damage import (
    Change,
    append,
    changed,
    content,
    deep,
    file_damages,
    find_seal,
    flip,
    hostile,
    json_damages,
    make_directory,
    make_file,
    make_loop,
    noise,
    overwrite,
    places,
    remove,
    renamed,
    replace,
    reseal,
    tensors,
    truncate,
)
from fault_runs import checkpoints

# What may come of a case: the result of the undisturbed run; the same, having named what was broken; a refusal; the
# undisturbed result but for rows of a file that is named.
SAME, PREVIOUS, REFUSED, ROWS_LOST = "identical", "previous checkpoint, identical", "refused", "rows lost, file named"
NOTICED = {PREVIOUS, REFUSED}
ANY = {SAME, PREVIOUS, REFUSED}


class Damage(NamedTuple):
    """apply: does it to the run directory. allowed: what may come of it. verb: the command that is given then."""

    name: str
    apply: Change
    allowed: set[str]
    verb: str = "train"


def damages(base: Path, draw: random.Random) -> Iterator[Damage]:
    """Every case, for copies of the run in `base`."""
    newest, before = checkpoints(base)[-1], checkpoints(base)[-2]
    files = sorted(newest.iterdir())
    blocks = [f for f in files if f.name not in ("state.pt", "manifest.json")]
    in_part = blocks[1:-1]  # there may be many, all alike
    for file in files:
        shared = file.stat().st_nlink > 1  # with the checkpoint before: then there may be none to go back to
        allowed = NOTICED if shared else {PREVIOUS}
        if file in in_part:
            bit = draw.randrange(8 * file.stat().st_size)
            yield Damage(f"{file.name}: bit {bit} flipped", _of(functools.partial(flip, bit=bit), file, base), allowed)
            continue
        for name, change in file_damages(file, draw):
            yield Damage(f"{file.name}: {name}", _of(change, file, base), allowed)
        if shared:
            yield Damage(f"{file.name}: random bytes in this checkpoint alone", _of(_own_noise, file, base), {PREVIOUS})
        if (before / file.name).exists() and not shared:
            yield Damage(
                f"{file.name}: swapped with that of the one before", _swap(file, before / file.name, base), NOTICED
            )
    for name, change in json_damages(newest / "manifest.json"):
        yield Damage(f"manifest.json: {name}", _of(change, newest / "manifest.json", base), {PREVIOUS})
    yield from formats(newest)
    yield from entries(newest, draw)
    yield from names(newest)
    for how in ("torch zip", "torch legacy", "plain pickle"):
        for file in sorted(newest.glob("*.pt"))[-2:]:
            apply = functools.partial(hostile, how, file.name)
            yield Damage(f"hostile {how} as {file.name}", apply, NOTICED)
            yield Damage(f"hostile {how} as {file.name}, evaluate", apply, {SAME, *NOTICED}, "evaluate")
    for name, (made, allowed) in CONTENTS.items():
        yield Damage(f"state.pt, forged: {name}", functools.partial(content, made), allowed)
    yield from directories(base)
    yield from records(base)


# --- manifests and content ---


def formats(checkpoint: Path) -> Iterator[Damage]:
    """Format versions that this library has not written."""
    manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    now = manifest["format"]
    values: list[Any] = [now + 1, 999, 10**30, -1, str(now), now + 0.5, None, [], {}, float("inf"), float("nan"), ...]
    for new in values + ([0] if now == 1 else [now - 1, 0]):
        allowed = {REFUSED} if new in (now + 1, 999) else NOTICED
        name = "missing" if new is ... else repr(new)
        yield Damage(
            f"format {name}",
            _manifest_change(checkpoint, functools.partial(changed, path=("format",), new=new)),
            allowed,
        )


def entries(checkpoint: Path, draw: random.Random) -> Iterator[Damage]:
    """Entries of the manifest with values that they cannot have."""
    manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    seal = find_seal(manifest)
    skipped = {"format", *([seal[0]] if seal else [])}
    found = [(path, value) for path, value in places(manifest) if path[0] not in skipped]
    for path, value in found if len(found) <= 12 else draw.sample(found, 12):
        values: list[Any] = [None, -1, "x", [], 10**30, ...]
        for new in values:
            if new != value:
                name = f"manifest {'/'.join(path)} {'missing' if new is ... else repr(new)}"
                yield Damage(name, _manifest_change(checkpoint, functools.partial(changed, path=path, new=new)), ANY)


def names(checkpoint: Path) -> Iterator[Damage]:
    """Names in the manifest that lead out of the checkpoint, to a good copy of the file."""
    text = (checkpoint / "manifest.json").read_text(encoding="utf-8")
    listed = [p.name for p in sorted(checkpoint.iterdir()) if f'"{p.name}"' in text]
    for name in listed[:1] + listed[-1:] if len(listed) > 1 else listed:
        strange = [
            "../copy.pt",
            "../../copy.pt",
            "/",
            "",
            ".",
            "..",
            f"./{name}",
            f"x/{name}",
            "a" * 5000,
            "\0",
            "\udcff",
        ]
        for new in strange:
            change = functools.partial(renamed, old=name, new=new)
            yield Damage(f"{name} called {new[:20]!r}", _manifest_change(checkpoint, change, copy=name), NOTICED)
        yield Damage(
            f"{name} called by its absolute name", functools.partial(_absolute, checkpoint.name, name), NOTICED
        )


def _manifest_change(checkpoint: Path, change: Callable[[Any], Any], copy: str = "") -> Change:
    def apply(out: Path) -> None:
        mine = out / "checkpoints" / checkpoint.name
        if copy:
            shutil.copy(mine / copy, out / "copy.pt")
            shutil.copy(mine / copy, out / "checkpoints" / "copy.pt")
        reseal(mine, change)

    return apply


def _absolute(checkpoint: str, name: str, out: Path) -> None:
    mine = out / "checkpoints" / checkpoint
    reseal(mine, functools.partial(renamed, old=name, new=str((mine / name).absolute())))


CONTENTS: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
    "the same again": (lambda state: state, {SAME}),  # shows that forged digests are taken for good
    "a list": (lambda state: [state], NOTICED),
    "a tensor": (lambda state: torch.zeros(3), NOTICED),
    "an empty dict": (lambda state: {}, NOTICED),
    "nested 2,000 deep": (deep, NOTICED),
    "agents nested 2,000 deep": (lambda state: state | {"agents": deep(1)}, NOTICED),
    "agents of another shape": (tensors(lambda v: torch.zeros(5, 7)), NOTICED),
    "agents of another dtype": (tensors(lambda v: v.to(torch.complex64)), ANY),
    "no agents in them": (lambda state: state | {"agents": {}}, NOTICED),
    "run of another type": (lambda state: state | {"run": 7}, NOTICED),
}
for _name in ("agents", "run", "replay", "envs"):
    CONTENTS[f"without {_name}"] = (functools.partial(changed, path=(_name,), new=...), NOTICED)


# --- directories and records ---


def directories(base: Path) -> Iterator[Damage]:
    """Damage to the directory of checkpoints."""
    newest, before = (f"checkpoints/{p.name}" for p in reversed(checkpoints(base)[-2:]))
    step = int(Path(newest).name.split(".")[0])

    def all_broken(out: Path) -> None:
        for path in checkpoints(out):
            replace(path / "state.pt", b"")

    def stray(name: str) -> Change:
        return lambda out: (out / "checkpoints" / name).write_text("x", encoding="utf-8")

    def temporary(out: Path) -> None:
        for name in (f".{step + 50:09d}", f".{step + 50:09d}.tmp", f".{step:09d}.old"):
            (out / "checkpoints" / name).mkdir()
            (out / "checkpoints" / name / "state.pt").write_bytes(b"half")

    yield Damage("newest checkpoint: an empty directory", lambda out: make_directory(out / newest), {PREVIOUS})
    yield Damage("newest checkpoint: a file", _of(make_file, base / newest, base), {PREVIOUS})
    yield Damage("newest checkpoint: a link to itself", lambda out: make_loop(out / newest), {PREVIOUS})
    yield Damage("the two newest under each other's name", _swap_directories(newest, before), NOTICED)
    yield Damage("all checkpoints broken", all_broken, {REFUSED})
    yield Damage("no checkpoints", lambda out: remove(out / "checkpoints"), {SAME, REFUSED})
    yield Damage("checkpoints: a file", _of(make_file, base / "checkpoints", base), {REFUSED})
    for name in ("notes.txt", f"{step + 1:09d}", "9" * 40, "1\N{SUPERSCRIPT TWO}", "1e9", "\N{ARABIC-INDIC DIGIT ONE}"):
        yield Damage(f"a file {name!a} among the checkpoints", stray(name), {SAME, PREVIOUS})
    yield Damage("half-written checkpoints left behind", temporary, {SAME})


def records(base: Path) -> Iterator[Damage]:
    """Damage to the other files of a run, such as the loss of power leaves."""
    lost = {SAME, REFUSED, ROWS_LOST}
    for file in ("metrics.csv", "evaluations.csv"):
        last = len((base / file).read_bytes().splitlines(keepends=True)[-1])
        cases: list[tuple[str, Change, set[str]]] = [
            ("a line half written", functools.partial(append, data=b"99999,0,0,1"), {SAME}),
            ("half a number at its end", functools.partial(append, data=b"99"), {SAME}),
            ("NUL bytes at its end", functools.partial(append, data=bytes(300)), {SAME}),
            ("NUL bytes and a line", functools.partial(append, data=bytes(300) + b"\n"), {SAME, REFUSED}),
            ("bytes that are not UTF-8 at its end", functools.partial(append, data=b"\xff\xfe\xfd"), {SAME, REFUSED}),
            ("a line without a step", functools.partial(append, data=b"x,y,z\n"), {SAME, REFUSED}),
            ("an empty line at its end", functools.partial(append, data=b"\n"), {SAME, REFUSED}),
            ("half of the last line missing", functools.partial(truncate, size=-last // 2), lost),
            ("half of it missing", functools.partial(truncate, size=(base / file).stat().st_size // 2), lost),
            ("half of its first line", functools.partial(truncate, size=5), lost),
            ("empty", functools.partial(truncate, size=0), lost),
            ("missing", remove, lost),
            ("NUL bytes only", lambda path: overwrite(path, bytes(path.stat().st_size)), lost),
            ("a directory instead", make_directory, {REFUSED}),
            ("a link to itself", make_loop, lost),
        ]
        for name, change, allowed in cases:
            yield Damage(f"{file}: {name}", _of(change, base / file, base), allowed)
    for file in ("status.json", "config.json"):
        kinds: list[tuple[str, Change]] = [("missing", remove), ("a directory instead", make_directory)]
        allowed = {SAME, REFUSED} if file == "status.json" else {REFUSED}
        for name, change in (*json_damages(base / file), *kinds):
            yield Damage(f"{file}: {name}", _of(change, base / file, base), allowed)
    yield from settings(base)
    yield Damage("*.tmp of files left behind", _leftovers, {SAME})
    yield Damage("a directory without a whole config.json", _just_made, {SAME})


def settings(base: Path) -> Iterator[Damage]:
    """Values in config.json that it cannot have."""
    about = json.loads((base / "config.json").read_text(encoding="utf-8"))
    formats: list[Any] = [2**31, "1", None, 1.5, -1, ...]
    others: list[Any] = [None, 7, "x", [], ...]
    values: list[tuple[tuple[str, ...], Any]] = [
        *((("format",), new) for new in formats),
        *(((name,), new) for name in ("algorithm", "config", "execution") for new in others),
        *((("execution", key), "x") for key in about["execution"]),
        (("execution", "unknown"), 1), (("execution", "threads"), -1), (("execution", "threads"), 0),
    ]  # fmt: skip
    for path, new in values:
        change = functools.partial(_about_change, path=path, new=new)
        name = f"config.json: {'/'.join(path)} {'missing' if new is ... else repr(new)}"
        yield Damage(name, _of(change, base / "config.json", base), {REFUSED})


def _leftovers(out: Path) -> None:
    for name in ("config", "status", "metrics", "evaluations"):
        (out / f"{name}.tmp").write_bytes(b"half")


def _just_made(out: Path) -> None:
    """What a kill leaves between the making of a run's directory and its first file."""
    remove(out)
    out.mkdir()
    (out / "config.tmp").write_bytes(b'{"format": 1, "alg')


def _about_change(file: Path, path: tuple[str, ...], new: Any) -> None:
    replace(file, json.dumps(changed(json.loads(file.read_text(encoding="utf-8")), path, new)).encode())


def _own_noise(path: Path) -> None:
    noise(path, 1)


def _of(change: Change, file: Path, base: Path) -> Change:
    inside = file.relative_to(base)
    return lambda out: change(out / inside)


def _swap(one: Path, other: Path, base: Path) -> Change:
    def apply(out: Path) -> None:
        here, there = out / one.relative_to(base), out / other.relative_to(base)
        mine, theirs = here.read_bytes(), there.read_bytes()
        replace(here, theirs)
        replace(there, mine)

    return apply


def _swap_directories(one: str, other: str) -> Change:
    def apply(out: Path) -> None:
        (out / one).rename(out / "aside")
        (out / other).rename(out / one)
        (out / "aside").rename(out / other)

    return apply
