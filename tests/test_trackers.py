"""Weights & Biases and the HParams tab of TensorBoard: what they get, once each; runs do not depend on it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from run_helpers import config, rows, status
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata

import deeprl
from deeprl.errors import DeeprlError
from deeprl.online import sac
from deeprl.reporting.cells import agent_identity
from deeprl.run import trackers


def records(file: Path) -> Iterator[bytes]:
    """Of a `.wandb` file: blocks of 32 kB behind 7 bytes, each record in one piece or more with a header each."""
    data, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, last
            yield record
            record = b""


def kept(folder: Path, i: str) -> tuple[list[Any], list[dict[str, float]]]:
    """The run messages and the rows of history that offline folders hold of the W&B run with an id."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs, history = [], []
    for file in sorted(folder.glob(f"wandb/offline-run-*-{i}/*.wandb")):
        for content in records(file):
            record = Record()
            record.ParseFromString(content)
            if record.WhichOneof("record_type") == "run":
                runs.append(record.run)
            elif record.WhichOneof("record_type") == "history":
                items = {"/".join(x.nested_key) or x.key: json.loads(x.value_json) for x in record.history.item}
                history.append({k: v for k, v in items.items() if k not in ("_timestamp", "_runtime")})
    return runs, history


def expected(directory: Path, member: int) -> list[dict[str, float]]:
    """The rows of the CSV files of an agent as W&B should have them."""
    found: dict[int, dict[str, float]] = {}
    for row in rows(directory / "metrics.csv"):
        if row["member"] == str(member):
            own = found.setdefault(int(row["step"]), {"_step": int(row["step"])})
            own |= {k: float(v) for k, v in row.items() if k.startswith("train/") and v != "nan"}
    returns: dict[int, list[float]] = {}
    for row in rows(directory / "evaluations.csv"):
        if row["member"] == str(member):
            returns.setdefault(int(row["step"]), []).append(float(row["return"]))
    for step, values in returns.items():
        found.setdefault(step, {"_step": step})["eval/return"] = sum(values) / len(values)
    return [found[step] for step in sorted(found)]


def test_offline_runs_have_every_row_once_after_a_stop_and_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nobody answers
    monkeypatch.setenv("WANDB_PROJECT", "tests")
    run, settings = tmp_path / "run", config(tmp_path / "run", steps=60, track="wandb", seeds=(3, 4), tau=(0.1, 0.2))
    sac.train(settings, callback=lambda run: run.step == 50)
    assert capsys.readouterr().out.count(f"W&B: 2 runs, offline: wandb sync {run}/wandb/offline-run-* sends them") == 1
    about = json.loads((run / "wandb.json").read_text())
    assert (about["logged"], about["open"]) == (49, [])
    # As a killed session leaves them, of another time: their names tell the second in which they began.
    left = [
        str(f.rename(f.with_name(f"offline-run-20260101_000000-{f.name[-8:]}"))) for f in run.glob("wandb/offline-*")
    ]
    (run / "wandb.json").write_text(json.dumps(about | {"logged": -1, "open": [*left, str(tmp_path)]}))
    assert sac.train(settings).finished
    assert not any(Path(folder).exists() for folder in left)
    for member, i in enumerate(about["ids"]):
        runs, history = kept(run, i)
        assert history == expected(run, member)
        assert [row["_step"] for row in history] == [35, 40, 42, 49, 56, 60]
        assert (runs[0].project, runs[0].run_id) == ("tests", i)
        assert runs[0].display_name == f"sac Pendulum-v1 tau={(0.1, 0.2)[member]} seed {3 + member}"
        own = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
        assert (own["seed"], own["tau"], own["algorithm"]) == (3 + member, (0.1, 0.2)[member], "sac")


class FakeRun:
    """A run of W&B. had: the step up to which the server knows it already."""

    def __init__(self, had: int, **given: Any):
        self.given, self.step, self.logged, self.code = given, had + 1, [], None
        self.dir, self.url, self.settings = "there/files", "https://wandb.test/run", SimpleNamespace(mode="online")

    def log(self, values: dict[str, float], step: int) -> None:
        self.step = step
        self.logged.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.code = exit_code


class Fake(ModuleType):
    """wandb with a server that knows rows up to `had`; failing: what raises."""

    def __init__(self, had: int = -1, failing: str = ""):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.runs, self.had, self.failing, self.Settings = list[FakeRun](), had, failing, SimpleNamespace

    def init(self, **given: Any) -> FakeRun:
        if self.failing == "init":
            raise ValueError("api_key not configured\n(no-tty)")
        self.runs.append(FakeRun(self.had, **given))
        if self.failing:
            setattr(self.runs[-1], self.failing, self._fail)
        return self.runs[-1]

    def _fail(self, *args: Any, **more: Any) -> None:
        raise OSError("connection lost")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    monkeypatch.setitem(sys.modules, "wandb", made)
    for name in ("WANDB_PROJECT", "WANDB_RUN_GROUP", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    return made


def test_agents_that_differ_in_their_seed_are_a_group(tmp_path: Path, fake: Fake) -> None:
    settings = {"seeds": (0, 1, 0), "tau": (0.1, 0.1, 0.2), "track": "wandb", "label": "x" * 200}
    trackers.WandbLog(tmp_path, "sac", config(tmp_path, **settings)).begin(lambda first: [])
    groups = [run.given["group"] for run in fake.runs]
    assert groups[0] == groups[1] != groups[2]
    assert all(len(group) < 128 for group in groups)
    assert {run.given["project"] for run in fake.runs} == {"deeprl"}
    assert {run.given["reinit"] for run in fake.runs} == {"create_new"}
    assert len({run.given["id"] for run in fake.runs}) == 3


def test_a_server_gets_what_it_has_not_and_the_same_ids(tmp_path: Path, fake: Fake) -> None:
    settings = config(tmp_path, track="wandb")
    log = trackers.WandbLog(tmp_path, "sac", settings)
    log.begin(lambda first: [])
    log.write(7, 0, {"a": 1.0})
    log.commit()  # and killed
    fake.had = 7
    log = trackers.WandbLog(tmp_path, "sac", settings)
    asked = []
    log.begin(lambda first: asked.append(first) or [(7, 0, {"a": 1.0}), (14, 0, {"a": 2.0})])
    assert asked == [0]
    log.write(14, 0, {"eval/return": 3.0})  # of the step at which it had been stopped
    log.commit()
    assert fake.runs[1].logged == [(14, {"a": 2.0}), (14, {"eval/return": 3.0})]
    assert log.close(failed=True) == ""
    assert (fake.runs[1].code, fake.runs[0].given["id"]) == (1, fake.runs[1].given["id"])
    assert trackers.WandbLog(tmp_path, "sac", settings).begin(lambda first: asked.append(first) or [])
    assert asked == [0, 15]
    with pytest.raises(DeeprlError, match=r"wandb.json is of another run; delete it"):
        trackers.WandbLog(tmp_path, "sac", config(tmp_path, seeds=(0, 1), track="wandb")).begin(lambda first: [])


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(
    tmp_path: Path, fake: Fake, failing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failing = failing
    run = sac.train(config(tmp_path / "run", steps=45, track="wandb", eval_episodes=1))
    assert run.finished
    shown = capsys.readouterr().out
    assert shown.count("W&B failed") == 1
    assert ("api_key not configured" if failing == "init" else "connection lost") in shown
    assert len(rows(tmp_path / "run" / "metrics.csv")) > 0


def test_without_wandb_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeeprlError, match=r"track: wandb is not installed; pip install 'deeprl\[wandb\]'"):
        sac.train(config(tmp_path / "run", track="wandb"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(DeeprlError, match="track: expected none, wandb, not 'mlflow'"):
        deeprl.train("sac", out=str(tmp_path / "run"), track="mlflow")


def test_tracking_is_no_part_of_what_a_run_is() -> None:
    both = [
        {"algorithm": "sac", "config": {"track": track}, "members": [{"member": 0, "seed": 0, "settings": {}}]}
        for track in ("none", "wandb")
    ]
    assert agent_identity(both[0], 0) == agent_identity(both[1], 0)


def test_hparams_tab_has_the_settings_of_each_agent(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", steps=60, tensorboard=True, seeds=(3, 4), actor_lr=(1e-3, 3e-4))
    sac.train(settings, callback=lambda run: run.step == 50)
    assert ends(tmp_path / "run", 0) == [None, None]  # a run that is only stopped has not ended
    sac.train(settings)
    assert status(tmp_path / "run")["state"] == "finished"
    assert sorted(p.name for p in (tmp_path / "run" / "tensorboard").iterdir()) == [
        "member_0_seed_3",
        "member_1_seed_4",
    ]
    for member in (0, 1):
        start, end = ends(tmp_path / "run", member)
        assert end.status == api_pb2.Status.Value("STATUS_SUCCESS")
        assert start.hparams["seed"].number_value == 3 + member
        assert start.hparams["actor_lr"].number_value == (1e-3, 3e-4)[member]
        assert start.hparams["normalize_obs"].bool_value is False
        assert start.hparams["algorithm"].string_value == "sac"
        assert start.hparams["hidden"].string_value == "[16, 16]"
        assert not {"out", "label", "track"} & set(start.hparams)


def ends(directory: Path, member: int) -> list[Any]:
    """What the tab knows of an agent: how it started, with the metrics beside it, and how it ended; None where not."""
    events = EventAccumulator(str(directory / "tensorboard" / f"member_{member}_seed_{3 + member}"))
    events.Reload()
    found = events.PluginTagToContent("hparams") if events.Tags()["tensors"] else {}
    tags = metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG
    if tags[1] not in found:
        assert tags[0] in found
        return [None, None]
    assert events.Scalars("eval/return")[-1].step == 60  # the metric of the row
    start = metadata.parse_session_start_info_plugin_data(found[tags[0]])
    return [start, metadata.parse_session_end_info_plugin_data(found[tags[1]])]
