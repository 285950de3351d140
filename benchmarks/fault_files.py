"""Damaged files: every case copies an unfinished run with its checkpoints, damages it and repeats the command.

The cases are made from the files that are there, so they follow the format of the checkpoints. Where the case is about
content that must not be trusted, sizes and digests in the manifest are made to fit (`reseal`): a stranger can do that.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fault_runs import SELDOM, Attempt, Case, attempt, begin, checkpoints, compare, digests

CASE = Case(
    "dqn",
    260,
    "--env CartPole-v1 --seeds 0-1 --prioritized --n-step 2 --learning-starts 100 --train-every 4 --utd 0.25"
    " --hidden 16 --batch-size 16 --log-every 20 --eval-every 80 --eval-episodes 2 --keep-checkpoints 3"
    " --no-tensorboard",
    minutes=0.0005,
)
KILL_AT = 200
LIMIT_S = 30.0

# What may come of a case: the result of the undisturbed run; the same, having named what was broken; a refusal; the
# undisturbed result but for rows of a file that is named.
SAME, PREVIOUS, REFUSED, ROWS_LOST = "identical", "previous checkpoint, identical", "refused", "rows lost, file named"
NOTICED = {PREVIOUS, REFUSED}
ANY = {SAME, PREVIOUS, REFUSED}

Change = Callable[[Path], None]


class Damage(NamedTuple):
    """apply: does it to the run directory. allowed: what may come of it. verb: the command that is given then."""

    name: str
    apply: Change
    allowed: set[str]
    verb: str = "train"


# --- damage to one file ---


def overwrite(path: Path, data: bytes) -> None:
    """Other bytes in the same file, under all of its names."""
    with path.open("rb+") as file:
        file.truncate()
        file.write(data)


def truncate(path: Path, size: int) -> None:
    os.truncate(path, size if size >= 0 else max(path.stat().st_size + size, 0))


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    overwrite(path, bytes(data))


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def replace(path: Path, data: bytes) -> None:
    """Another file of that name; other names of the old one stay as they are."""
    path.unlink()
    path.write_bytes(data)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def make_directory(path: Path) -> None:
    remove(path)
    path.mkdir()


def make_loop(path: Path) -> None:
    remove(path)
    path.symlink_to(path.name)


def make_pipe(path: Path) -> None:
    """A file that lets its reader wait for ever."""
    remove(path)
    os.mkfifo(path)


def noise(path: Path, seed: int) -> None:
    replace(path, random.Random(seed).randbytes(path.stat().st_size))


def file_damages(path: Path, draw: random.Random) -> Iterator[tuple[str, Change]]:
    """Ways to damage a file, for a copy of `path`."""
    size = path.stat().st_size
    for cut in sorted({0, 1, size // 2, size - 1}):
        yield f"{cut} of {size} bytes left", functools.partial(truncate, size=cut)
    bits = {0, 8 * size - 1, *(draw.randrange(8 * size) for _ in range(6))}
    for bit in sorted(bits):
        yield f"bit {bit} flipped", functools.partial(flip, bit=bit)
    yield "a byte more", functools.partial(append, data=b"\0")
    yield "random bytes", functools.partial(noise, seed=size)
    yield "missing", remove
    yield "a directory instead", make_directory
    yield "a link to itself", make_loop
    yield "a pipe instead", make_pipe


# --- manifests ---


def find_seal(manifest: dict[str, Any]) -> tuple[str, Callable[[Any], str]] | None:
    """Which entry of a manifest is a digest of the rest, and how it is made; None where there is no such entry."""
    for name, value in manifest.items():
        rest = {k: v for k, v in manifest.items() if k != name}
        for options in ({}, {"sort_keys": True}, {"indent": 1}, {"indent": 1, "sort_keys": True}):
            dump: Callable[[Any], str] = functools.partial(_digest, options=options)
            if isinstance(value, str) and dump(rest) == value:
                return name, dump
    return None


def _digest(value: Any, options: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, **options).encode()).hexdigest()


def reseal(checkpoint: Path, change: Callable[[Any], Any]) -> None:
    """Change the manifest of a checkpoint, and its digest of itself where it has one."""
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    seal = find_seal(manifest)
    if seal is not None:
        manifest.pop(seal[0])
    manifest = change(manifest)
    if seal is not None and isinstance(manifest, dict):
        manifest[seal[0]] = seal[1](manifest)
    replace(path, json.dumps(manifest).encode())


def forge(file: Path, write: Callable[[Path], None]) -> None:
    """Give a file of a checkpoint other content, and the manifest the size and digest of that."""
    size, digest = file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
    file.unlink()
    write(file)
    fresh = hashlib.sha256(file.read_bytes()).hexdigest()

    def fitted(value: Any) -> Any:
        if isinstance(value, dict) and digest in value.values():
            return {k: {digest: fresh, size: file.stat().st_size}.get(v, v) for k, v in value.items()}
        return {k: fitted(v) for k, v in value.items()} if isinstance(value, dict) else value

    reseal(file.parent, fitted)


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every entry of nested dicts with the keys that lead to it."""
    for key, entry in value.items() if isinstance(value, dict) else ():
        yield (*path, key), entry
        yield from places(entry, (*path, key))


def changed(value: Any, path: tuple[str, ...], new: Any) -> Any:
    """A copy of nested dicts with one entry changed; `...` deletes it."""
    if len(path) > 1:
        return value | {path[0]: changed(value[path[0]], path[1:], new)}
    return {k: v for k, v in (value | {path[0]: new}).items() if v is not ...}


def renamed(value: Any, old: str, new: str) -> Any:
    """A copy of nested values with another name, whether a key or an entry."""
    if isinstance(value, dict):
        return {(new if k == old else k): renamed(v, old, new) for k, v in value.items()}
    return new if value == old else value


def formats(checkpoint: Path) -> Iterator[Damage]:
    """Format versions that this library has not written."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    now = manifest["format"]
    clear = {now + 1: {REFUSED}, 999: {REFUSED}, now - 1: NOTICED, -1: NOTICED}
    for new in (
        now + 1,
        999,
        10**30,
        now - 1,
        0,
        -1,
        str(now),
        now + 0.5,
        None,
        [],
        {},
        float("inf"),
        float("nan"),
        ...,
    ):
        allowed = clear.get(new, NOTICED) if isinstance(new, int) else NOTICED
        name = "missing" if new is ... else repr(new)
        yield Damage(
            f"format {name}",
            _manifest_change(checkpoint, functools.partial(changed, path=("format",), new=new)),
            allowed,
        )


def entries(checkpoint: Path, draw: random.Random) -> Iterator[Damage]:
    """Entries of the manifest with values that they cannot have."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    seal = find_seal(manifest)
    skipped = {"format", *([seal[0]] if seal else [])}
    found = [(path, value) for path, value in places(manifest) if path[0] not in skipped]
    for path, value in found if len(found) <= 12 else draw.sample(found, 12):
        for new in (None, -1, "x", [], 10**30, ...):
            if new != value:
                name = f"manifest {'/'.join(path)} {'missing' if new is ... else repr(new)}"
                yield Damage(name, _manifest_change(checkpoint, functools.partial(changed, path=path, new=new)), ANY)


def names(checkpoint: Path) -> Iterator[Damage]:
    """Names in the manifest that lead out of the checkpoint, to a good copy of the file."""
    text = (checkpoint / "manifest.json").read_text()
    listed = [p.name for p in sorted(checkpoint.iterdir()) if f'"{p.name}"' in text]
    for name in listed[:1] + listed[-1:] if len(listed) > 1 else listed:
        for new in (
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
        ):
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


def json_damages(path: Path) -> Iterator[tuple[str, Change]]:
    """JSON files that are not what they should be."""
    for name, data in {
        "a list": b"[1, 2]", "a number": b"7", "null": b"null", "a string": b'"x"', "an empty object": b"{}",
        "nested 100,000 deep": b"[" * 100_000, "nested 100,000 deep in an object": b'{"format": ' * 100_000,
        "not UTF-8": b"\xff\xfe\x00{", "a long number": b'{"format": ' + b"9" * 5000 + b"}", "NUL bytes": bytes(300),
    }.items():  # fmt: skip
        yield name, functools.partial(replace, data=data)
    yield "half of it", functools.partial(truncate, size=path.stat().st_size // 2)
    yield "empty", functools.partial(truncate, size=0)
    yield "NUL bytes at its end", functools.partial(append, data=bytes(64))


# --- hostile content ---


class Hostile:
    """Unpickling an instance makes a directory."""

    def __init__(self, sentinel: Path):
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sentinel),)


def sentinel(out: Path) -> Path:
    return out.parent / f"{out.name}.executed"


def hostile(how: str, file: str, out: Path) -> None:
    """A file of the newest checkpoint that runs code where it is unpickled without care."""
    payload = {"agents": Hostile(sentinel(out)), "run": {}}

    def write(path: Path) -> None:
        if how == "plain pickle":
            path.write_bytes(pickle.dumps(payload, protocol=2))
        else:
            torch.save(payload, path, _use_new_zipfile_serialization=how == "torch zip")

    forge(checkpoints(out)[-1] / file, write)


def content(change: Callable[[Any], Any], out: Path) -> None:
    """Other content in the state of the newest checkpoint."""
    file = checkpoints(out)[-1] / "state.pt"
    state = torch.load(file, weights_only=True)
    forge(file, functools.partial(torch.save, change(state)))


def _deep(state: Any) -> Any:
    for _ in range(5_000):
        state = [state]
    return state


def _tensors(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    return lambda state: state | {"agents": {k: change(v) for k, v in state["agents"].items()}}


CONTENTS: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
    "the same again": (lambda state: state, {SAME}),  # shows that forged digests are taken for good
    "a list": (lambda state: [state], NOTICED),
    "a tensor": (lambda state: torch.zeros(3), NOTICED),
    "an empty dict": (lambda state: {}, NOTICED),
    "nested 5,000 deep": (_deep, NOTICED),
    "agents nested 5,000 deep": (lambda state: state | {"agents": _deep(1)}, NOTICED),
    "agents of another shape": (_tensors(lambda v: torch.zeros(5, 7)), NOTICED),
    "agents of another dtype": (_tensors(lambda v: v.to(torch.complex64)), NOTICED),
    "no agents in them": (lambda state: state | {"agents": {}}, NOTICED),
    "run of another type": (lambda state: state | {"run": 7}, NOTICED),
}
for _name in ("agents", "run", "replay", "envs"):
    CONTENTS[f"without {_name}"] = (functools.partial(changed, path=(_name,), new=...), NOTICED)


# --- all cases ---


def damages(base: Path, draw: random.Random) -> Iterator[Damage]:
    """Every case, for copies of the run in `base`."""
    newest, before = checkpoints(base)[-1], checkpoints(base)[-2]
    for file in sorted(newest.iterdir()):
        shared = file.stat().st_nlink > 1  # with the checkpoint before: then there may be none to go back to
        for name, change in file_damages(file, draw):
            allowed = NOTICED if shared else {PREVIOUS}
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
            yield Damage(f"hostile {how} as {file.name}", apply, {PREVIOUS})
            yield Damage(f"hostile {how} as {file.name}, evaluate", apply, {SAME, *NOTICED}, "evaluate")
    for name, (made, allowed) in CONTENTS.items():
        yield Damage(f"state.pt, forged: {name}", functools.partial(content, made), allowed)
    yield from directories(base)
    yield from records(base)


def directories(base: Path) -> Iterator[Damage]:
    """Damage to the directory of checkpoints."""
    newest, before = (f"checkpoints/{p.name}" for p in reversed(checkpoints(base)[-2:]))
    step = int(Path(newest).name.split(".")[0])

    def all_broken(out: Path) -> None:
        for path in checkpoints(out):
            replace(path / "state.pt", b"")

    def stray(name: str) -> Change:
        return lambda out: (out / "checkpoints" / name).write_text("x") and None  # type: ignore[func-returns-value]

    def temporary(out: Path) -> None:
        for name in (f".{step + 50:09d}", f".{step + 50:09d}.tmp", f".{step:09d}.old"):
            (out / "checkpoints" / name).mkdir()
            (out / "checkpoints" / name / "state.pt").write_bytes(b"half")

    yield Damage("newest checkpoint: an empty directory", lambda out: make_directory(out / newest), {PREVIOUS})
    yield Damage("newest checkpoint: a file", lambda out: (remove(out / newest), (out / newest).touch())[0], {PREVIOUS})
    yield Damage("newest checkpoint: a link to itself", lambda out: make_loop(out / newest), {PREVIOUS})
    yield Damage("the two newest under each other's name", _swap_directories(newest, before), NOTICED)
    yield Damage("all checkpoints broken", all_broken, {REFUSED})
    yield Damage("no checkpoints", lambda out: remove(out / "checkpoints"), {SAME, REFUSED})
    yield Damage(
        "checkpoints: a file", lambda out: (remove(out / "checkpoints"), (out / "checkpoints").touch())[0], {REFUSED}
    )
    for name in ("notes.txt", f"{step + 1:09d}", "9" * 40, "1\N{SUPERSCRIPT TWO}", "1e9", "\N{ARABIC-INDIC DIGIT ONE}"):
        yield Damage(f"a file {name!a} among the checkpoints", stray(name), {SAME, PREVIOUS})
    yield Damage("half-written checkpoints left behind", temporary, {SAME})


def records(base: Path) -> Iterator[Damage]:
    """Damage to the other files of a run, such as the loss of power leaves."""
    lost = {SAME, REFUSED, ROWS_LOST}
    for file in ("metrics.csv", "evaluations.csv"):
        last = len((base / file).read_bytes().splitlines(keepends=True)[-1])
        for name, change, allowed in (
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
        ):  # fmt: skip
            yield Damage(f"{file}: {name}", _of(change, base / file, base), allowed)
    for file in ("status.json", "config.json"):
        kinds = [*json_damages(base / file), ("missing", remove), ("a directory instead", make_directory)]
        for name, change in kinds:
            allowed = {SAME, REFUSED} if file == "status.json" else {REFUSED}
            yield Damage(f"{file}: {name}", _of(change, base / file, base), allowed)
    about = json.loads((base / "config.json").read_text())
    for path, new in [
        *((("format",), new) for new in (2**31, "1", None, 1.5, -1, ...)),
        *(((name,), new) for name in ("algorithm", "config", "execution") for new in (None, 7, "x", [], ...)),
        *((("execution", key), "x") for key in about["execution"]),
        (("execution", "unknown"), 1), (("execution", "threads"), -1), (("execution", "threads"), 10**9),
    ]:  # fmt: skip
        change = functools.partial(_about_change, path=path, new=new)
        name = f"config.json: {'/'.join(path)} {'missing' if new is ... else repr(new)}"
        yield Damage(name, _of(change, base / "config.json", base), {REFUSED})
    yield Damage("*.tmp of files left behind", _leftovers, {SAME})
    yield Damage("a directory without a whole config.json", _just_made, {SAME})


def _leftovers(out: Path) -> None:
    for name in ("config", "status", "metrics", "evaluations"):
        (out / f"{name}.tmp").write_bytes(b"half")


def _just_made(out: Path) -> None:
    """What a kill leaves between the making of a run's directory and its first file."""
    remove(out)
    out.mkdir()
    (out / "config.tmp").write_bytes(b'{"format": 1, "alg')


def _about_change(file: Path, path: tuple[str, ...], new: Any) -> None:
    replace(file, json.dumps(changed(json.loads(file.read_text()), path, new)).encode())


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


# --- running them ---


def copy(base: Path, out: Path) -> None:
    """A copy of a run in which files with several names still have them."""
    shutil.rmtree(out, ignore_errors=True)
    done: dict[int, Path] = {}
    for path in sorted(base.rglob("*")):
        target = out / path.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        elif (inode := path.stat().st_ino) in done:
            os.link(done[inode], target)
        else:
            done[inode] = Path(shutil.copy2(path, target))


def unfinished_run(case: Case, out: Path, steps: int, count: int = 3) -> None:
    """A run that was killed when it had so many checkpoints and had come so far."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    log = out.parent / f"{out.name}.log"
    log.write_text("")
    process = begin(case.command(out), log)
    while process.exitcode is None and not (
        len(found := checkpoints(out)) >= count and int(found[-1].name[:9]) >= steps
    ):
        time.sleep(0.005)
    process.kill()
    process.join()
    if len(checkpoints(out)) < 2:
        raise SystemExit(f"{out}: not enough checkpoints to begin with: {log.read_text()}")


def judge(tried: Attempt, damage: Damage, out: Path, whole: Path, before: dict[str, str]) -> str:
    """What came of a case, in the words at the top of this file, or what is wrong."""
    if sentinel(out).exists():
        return "CODE EXECUTED"
    if tried.status is None:
        return f"no end within {LIMIT_S:.0f} s"
    if tried.refused:
        after = digests(out)
        touched = [name for name, digest in before.items() if after.get(name) != digest]
        return f"refused, but changed {touched[0]}" if touched else REFUSED
    if tried.status != 0 or "Traceback" in tried.output:
        return f"status {tried.status}: {tried.last_line[:160]}"
    return SAME if damage.verb == "evaluate" else _result(tried, out, whole)


def _result(tried: Attempt, out: Path, whole: Path) -> str:
    noticed = "broken" in tried.output
    differ = compare(whole, out).differences
    if not differ:
        return PREVIOUS if noticed else SAME
    files = {text.split(":")[0] for text in differ}
    if files <= {"metrics.csv", "evaluations.csv"} and all(name in tried.output for name in files):
        return ROWS_LOST
    return f"another result, {'with' if noticed else 'without'} a word: {differ[0]}"


def examine(damage: Damage, base: Path, whole: Path, out: Path) -> dict[str, Any]:
    """One row of the table."""
    copy(base, out)
    damage.apply(out)
    before = digests(out)
    words = CASE.command(out, *SELDOM) if damage.verb == "train" else ["evaluate", str(out), "--episodes", "1"]
    tried = attempt(words, limit_s=LIMIT_S)
    outcome = judge(tried, damage, out, whole, before)
    said = tried.errors[-1] if tried.errors else next((li for li in tried.output.splitlines() if "broken" in li), "")
    said = said.replace(str(out), "RUN")[:200]
    ok = outcome in damage.allowed
    print(f"{'ok  ' if ok else 'FAIL'} {damage.name}: {outcome}{'' if ok else f' [{said}]'}", flush=True)
    return {"case": damage.name, "outcome": outcome, "ok": ok, "detail": said}


def run(directory: Path, seed: int, only: list[str] | None) -> Iterator[dict[str, Any]]:
    """All cases, or those with one of `only` in their names."""
    place = directory / "files"
    whole, base = place / "whole", place / "base"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    tried = attempt(CASE.command(whole, *SELDOM))
    if tried.status != 0:
        raise SystemExit(f"{whole}: {tried.output}")
    unfinished_run(CASE, base, KILL_AT)
    for damage in damages(base, random.Random(seed)):
        if not only or any(part in damage.name for part in only):
            yield examine(damage, base, whole, place / "case")
            shutil.rmtree(place / "case", ignore_errors=True)
            shutil.rmtree(sentinel(place / "case"), ignore_errors=True)
