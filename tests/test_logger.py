import csv
import os
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deeprl.errors import DeeprlError
from deeprl.run.logger import CsvLog, TensorBoardLog


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_steps(log, *steps):
    log.write([{"step": s, "x": s / 2} for s in steps])


def steps(path):
    return [int(row["step"]) for row in read(path)]


def test_columns_are_those_of_the_first_row(tmp_path):
    log = CsvLog(tmp_path / "a.csv")
    log.write([{"step": 1, "member": 0, "train/q": 0.5}, {"step": 1, "member": 1, "train/q": 1e-20}])
    log.write([{"step": 2, "member": 0}])
    assert (tmp_path / "a.csv").read_text() == "step,member,train/q\n1,0,0.5\n1,1,1e-20\n2,0,\n"


def test_unknown_column_raises(tmp_path):
    log = CsvLog(tmp_path / "a.csv")
    write_steps(log, 1)
    with pytest.raises(ValueError, match="y"):
        log.write([{"step": 2, "y": 1}])


def test_no_rows_make_no_file(tmp_path):
    log = CsvLog(tmp_path / "a.csv")
    log.write([])
    assert log.mark() == [0, ""]
    assert log.cut_back([0, ""]) == ""
    assert not (tmp_path / "a.csv").exists()


def test_floats_come_back_exactly(tmp_path):
    values = [0.1, 1 / 3, 1e300, -2.5e-310]
    CsvLog(tmp_path / "a.csv").write([{"step": i, "x": v} for i, v in enumerate(values)])
    assert [float(row["x"]) for row in read(tmp_path / "a.csv")] == values


def test_reopened_log_appends(tmp_path):
    write_steps(CsvLog(tmp_path / "a.csv"), 1, 2)
    log = CsvLog(tmp_path / "a.csv")
    log.write([{"x": 1.5, "step": 3}])  # in the order of the file's columns
    assert (tmp_path / "a.csv").read_text() == "step,x\n1,0.5\n2,1.0\n3,1.5\n"


def test_cut_back_drops_what_came_later(tmp_path):
    log = CsvLog(tmp_path / "a.csv")
    write_steps(log, 1, 2, 2)
    mark = log.mark()
    write_steps(log, 3, 10)
    again = CsvLog(tmp_path / "a.csv")
    assert again.cut_back(mark) == ""
    assert steps(tmp_path / "a.csv") == [1, 2, 2]
    write_steps(again, 3)
    assert (tmp_path / "a.csv").read_text() == "step,x\n1,0.5\n2,1.0\n2,1.0\n3,1.5\n"


def test_cut_back_to_the_beginning_takes_other_columns(tmp_path):
    write_steps(CsvLog(tmp_path / "a.csv"), 1, 2)
    log = CsvLog(tmp_path / "a.csv")
    assert log.cut_back([0, ""]) == ""
    log.write([{"step": 1, "y": 7}])
    assert (tmp_path / "a.csv").read_text() == "step,y\n1,7\n"


@pytest.mark.parametrize("tail", [b"3", b"3,1.", b'3,"1', b"3,1.5\n", b"\0\0\0\0\0", b"\xff\xfe"])
def test_anything_behind_the_mark_is_dropped(tail, tmp_path):
    path = tmp_path / "a.csv"
    log = CsvLog(path)
    write_steps(log, 1, 2)
    mark = log.mark()
    path.write_bytes(path.read_bytes() + tail)
    again = CsvLog(path)
    again.cut_back(mark)
    write_steps(again, 3)
    assert path.read_text() == "step,x\n1,0.5\n2,1.0\n3,1.5\n"


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-1], lambda b: b.replace(b"0.5", b"9.5")])
def test_damage_before_the_mark_is_an_error(damage, tmp_path):
    path = tmp_path / "a.csv"
    log = CsvLog(path)
    write_steps(log, 1, 2)
    mark = log.mark()
    path.write_bytes(damage(path.read_bytes()))
    damaged = path.read_bytes()
    with pytest.raises(DeeprlError, match=r"a\.csv is damaged; delete it to go on without its rows so far"):
        CsvLog(path).cut_back(mark)
    assert path.read_bytes() == damaged


def test_deleted_file_is_named(tmp_path):
    path = tmp_path / "a.csv"
    log = CsvLog(path)
    write_steps(log, 1, 2)
    mark = log.mark()
    path.unlink()
    again = CsvLog(path)
    assert again.cut_back(mark) == f"{path} was deleted: its rows so far are lost"
    write_steps(again, 3)
    assert path.read_text() == "step,x\n3,1.5\n"


def test_quoted_text_survives_a_cut(tmp_path):
    log = CsvLog(tmp_path / "a.csv")
    log.write([{"step": 1, "x": 'a, "b"'}])
    mark = log.mark()
    log.write([{"step": 2, "x": "c"}])
    log.cut_back(mark)
    assert read(tmp_path / "a.csv") == [{"step": "1", "x": 'a, "b"'}]


def scalars(directory, tag):
    return [(e.step, e.value) for e in EventAccumulator(str(directory)).Reload().Scalars(tag)]


def test_tensorboard_has_a_readable_run_per_member(tmp_path):
    log = TensorBoardLog(tmp_path, ["member_0_seed_4", "member_1_seed_9"])
    log.write(10, 0, {"train/q": 0.5, "train/alpha": 2.0})
    log.write(20, 0, {"train/q": 0.25})
    log.write(10, 1, {"train/q": -1.5})
    log.close()
    assert scalars(tmp_path / "member_0_seed_4", "train/q") == [(10, 0.5), (20, 0.25)]
    assert scalars(tmp_path / "member_0_seed_4", "train/alpha") == [(10, 2.0)]
    assert scalars(tmp_path / "member_1_seed_9", "train/q") == [(10, -1.5)]


def test_tensorboard_reopened_forgets_later_steps(tmp_path):
    log = TensorBoardLog(tmp_path, ["a"])
    for step in (10, 20, 30):
        log.write(step, 0, {"x": float(step)})
    log.close()
    log = TensorBoardLog(tmp_path, ["a"], purge_step=21)
    log.write(30, 0, {"x": -30.0})
    log.close()
    assert scalars(tmp_path / "a", "x") == [(10, 10.0), (20, 20.0), (30, -30.0)]


def test_tensorboard_without_values_writes_nothing(tmp_path):
    log = TensorBoardLog(tmp_path / "tb", ["a"])
    log.close()
    assert not (tmp_path / "tb").exists()


def test_tensorboard_values_are_seen_at_once_and_brought_to_the_disk(tmp_path, monkeypatch):
    log = TensorBoardLog(tmp_path, ["a", "b"])
    log.write(10, 0, {"x": 1.5})
    log.write(10, 1, {"x": 2.5})
    seen = EventAccumulator(str(tmp_path / "b"))
    seen.Reload()
    assert [(v.step, v.value) for v in seen.Scalars("x")] == [(10, 2.5)]
    flushed = []
    monkeypatch.setattr("os.fsync", lambda file: flushed.append(os.fstat(file).st_ino))
    log.sync()
    assert flushed == [next((tmp_path / name).iterdir()).stat().st_ino for name in ("a", "b")]
    log.close()


def write_session(directory, now, first, last, monkeypatch):
    """Steps first .. last - 1 in a session whose clock stands at `now` seconds."""
    monkeypatch.setattr("deeprl.run.logger.time.time", lambda: float(now))
    monkeypatch.setattr("deeprl.run.logger.time.time_ns", lambda: now * 10**9)
    log = TensorBoardLog(directory, ["a"], first)
    for step in range(first, last + 3):  # the last three are never shown: the session is killed before they are saved
        log.write(step, 0, {"x": float(step)})
    log.close()


# The clock of each session, in seconds: an hour behind, in 1970, at the same moment, far ahead and then right again.
@pytest.mark.parametrize("clocks", [(5000, 1400), (2 * 10**9, 7), (7, 7, 7), (2**40, 5000, 5001), (5, 1, 4, 2)])
def test_tensorboard_shows_all_steps_in_order_whatever_the_clock(clocks, tmp_path, monkeypatch):
    for session, now in enumerate(clocks):
        write_session(tmp_path, now, 10 * session, 10 * session + 10, monkeypatch)
    monkeypatch.undo()
    shown = EventAccumulator(str(tmp_path / "a")).Reload().Scalars("x")
    assert [value.step for value in shown] == list(range(10 * len(clocks) + 3))
    times = [value.wall_time for value in shown]
    assert times == sorted(times)
    assert times[0] == clocks[0]
    assert times[-1] == max(clocks)


@pytest.mark.parametrize("name", ["events.out.tfevents.1700000000.host.1.0", "events.out.tfevents.host"])
@pytest.mark.parametrize("content", [b"", bytes(40), b"\xff" * 40, (3).to_bytes(8, "little") + bytes(4) + b"\xff" * 7])
def test_tensorboard_goes_on_beside_files_of_others_and_broken_ones(name, content, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(content)
    began = time.time()
    log = TensorBoardLog(tmp_path, ["a"])
    log.write(10, 0, {"x": 0.5})
    log.close()
    (ours,) = [file for file in (tmp_path / "a").iterdir() if file.name != name]
    (shown,) = EventAccumulator(str(ours)).Reload().Scalars("x")
    assert shown.wall_time >= began
