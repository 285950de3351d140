"""Which networks a function makes, told by what they compute."""

import functools
import importlib
import subprocess
import sys
import uuid
import warnings

import numpy as np
import pytest
from torch import nn

import deeprl
from deeprl.errors import DeeprlError
from deeprl.nets import CriticEnsemble
from deeprl.run.fingerprint import fingerprint

SOURCE = '''
import torch
from torch import nn

SCALE = 1.0
TABLE = [1, 2]


def squash(x):
    """How."""
    return torch.tanh(x) * SCALE


class Base(nn.Module):
    def head(self, x):
        return x.relu()


class Net(Base):
    def __init__(self, width=8, slope=0.1):
        super().__init__()
        self.layer, self.act = nn.Linear(3, width), nn.LeakyReLU(slope)
        self.gain = 2.0

    def forward(self, obs):
        # what it does
        return squash(self.act(self.head(self.layer(obs))))


def make(spec, config):
    return Net()


def train():
    return 5
'''


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """Of what `make` makes in a module with this text."""
    monkeypatch.syspath_prepend(tmp_path)

    def of(text: str) -> str:
        name = f"nets_of_{uuid.uuid4().hex}"
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        module = importlib.import_module(name)
        return fingerprint(module.make, [module.make(None, None)])

    return of


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return torch.tanh(x) * SCALE", "return torch.sin(x) * SCALE"),  # a function that forward calls
        ("SCALE = 1.0", "SCALE = 1.5"),  # a number that it reads
        ("return x.relu()", "return x.sigmoid()"),  # a base class
        ("width=8", "width=9"),
        ("slope=0.1", "slope=0.2"),  # what only the structure shows
        ("self.gain = 2.0", "self.gain = 3.0"),
        ("return Net()", "return Net(slope=0.3)"),
    ],
)
def test_what_networks_compute_is_in_it(digest, old, new):
    assert digest(SOURCE.replace(old, new)) != digest(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    # what it does\n", ""),
        ('    """How."""\n', '    """How it squashes."""\n'),
        ("self.layer, self.act = nn.Linear(3, width), nn.LeakyReLU(slope)", "self.layer, self.act = (\n            "
         "nn.Linear(3, width), nn.LeakyReLU(slope))"),
        ("return 5", "return 6"),  # the script around it
        ("TABLE = [1, 2]", "TABLE = [1, 2, 3]"),
    ],
)  # fmt: skip
def test_what_they_do_not_compute_is_not(digest, old, new):
    assert old in SOURCE
    assert digest(SOURCE.replace(old, new)) == digest(SOURCE)


def test_it_is_the_same_in_another_process(tmp_path):
    (tmp_path / "nets_of_mine.py").write_text(SOURCE, encoding="utf-8")
    code = "import nets_of_mine as m; from deeprl.run.fingerprint import fingerprint as f; print(f(m.make, [m.Net()]))"
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_arguments_of_a_partial_and_values_of_a_closure_are_in_it():
    def make(scale, spec=None, config=None):
        return nn.Linear(2, 2)

    def closed(scale):
        def inner(spec, config):
            return nn.Linear(2, int(2 * scale / scale))

        return inner

    net = [nn.Linear(2, 2)]
    assert fingerprint(functools.partial(make, 1.0), net) != fingerprint(functools.partial(make, 2.0), net)
    assert fingerprint(closed(1.0), net) != fingerprint(closed(2.0), net)
    assert fingerprint(closed(1.0), net) == fingerprint(closed(1.0), net)


def test_what_has_no_source_is_told_by_its_structure():
    space: dict = {"nn": nn}
    exec("def make(spec, config):\n    return nn.Linear(2, 2)", space)
    assert fingerprint(space["make"], [nn.Linear(2, 2)]) == fingerprint(space["make"], [nn.Linear(2, 2)])
    assert fingerprint(space["make"], [nn.Linear(2, 2)]) != fingerprint(space["make"], [nn.Linear(2, 3)])


class Actor(nn.Module):
    def __init__(self, slope):
        super().__init__()
        self.layer, self.slope = nn.Linear(3, 2), slope

    def forward(self, obs):
        mean, log_std = nn.functional.leaky_relu(self.layer(obs), self.slope).chunk(2, -1)
        return mean, log_std.clamp(-5.0, 2.0)


def _net(slope):
    def make(spec, config):
        return Actor(slope), CriticEnsemble(3, 1, (8,))

    return make


@pytest.mark.parametrize("steps", [30, 60])  # unfinished, finished
def test_a_run_with_other_networks_of_the_same_name_and_sizes_is_refused(tmp_path, steps):
    few = {"steps": 60, "learning_starts": 20, "batch_size": 4, "eval_episodes": 0, "compile": "off", "threads": 1}
    few |= {"env": "Pendulum-v1", "out": str(tmp_path / "run"), "tensorboard": False}
    deeprl.train("sac", net=_net(0.1), callback=lambda run: run.step >= steps, **few)
    with pytest.raises(DeeprlError, match="own networks are not what they were when this run began"):
        deeprl.train("sac", net=_net(0.5), **few)
    run = deeprl.train("sac", net=_net(0.1), **few)
    assert run.finished
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert deeprl.load(run.directory, net=_net(0.1))(np.zeros(3)).shape == (1,)
    with pytest.warns(UserWarning, match="its own networks are not what they were when the run began"):
        deeprl.load(run.directory, net=_net(0.5))
