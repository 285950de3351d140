"""One population of a sweep: whether it can be trained, and whether it has been."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeprl.config import RunConfig
from deeprl.core.footprint import rehearse
from deeprl.core.spec import EnvSpec
from deeprl.data.source import find_again
from deeprl.errors import DeeprlError
from deeprl.run.directory import require_networks, stored_run
from deeprl.run.extension import require_extendable, with_stored_steps
from deeprl.run.own_networks import networks_digest
from deeprl.run.progress import show
from deeprl.run.records import COMPLETE, read_status
from deeprl.run.trained import algorithm_module


@dataclass(frozen=True)
class Planned:
    """One population to train."""

    algorithm: str
    config: RunConfig

    @property
    def directory(self) -> Path:
        return Path(self.config.out)

    @property
    def name(self) -> str:
        return f"{self.algorithm} {self.config.task} {self.config.label}".rstrip()

    def check(self) -> None:
        """Raise DeeprlError for what the settings alone do not show: environment, networks, device, directory.

        Warns of a population for which there is no memory now; it is refused if that is still so on its turn.
        """
        train = algorithm_module(self.algorithm).train
        needs = rehearse(train, self.config)
        before = with_stored_steps(self.directory, self.config)
        if stored := stored_run(self.directory, self.algorithm, before):
            self._require_unchanged(stored)
        if before is not self.config:
            try:
                require_extendable(self.directory, self.algorithm, self.config, train)
            except DeeprlError as error:
                raise DeeprlError(f"{self.name}: {error}") from error
        if not self.finished() and not needs.fit():
            show(f"warning: {self.name}: {needs.refusal()}")

    def _require_unchanged(self, stored: dict[str, Any]) -> None:
        """Raise DeeprlError for datasets and own networks that are not what they were when the run began."""
        known = stored.get("datasets", {})
        for source in filter(known.__contains__, self._datasets()):
            if find_again(source, known)[1]["sha256"] != known[source]["sha256"]:
                again = f"if its numbers are the same, deeprl resume {self.directory} says so"
                raise DeeprlError(
                    f"{source} is not the file that it was when {self.directory} began; choose another out ({again})"
                )
        if self.config.net and "net_digest" in stored:
            module, spec = algorithm_module(self.algorithm), EnvSpec.from_json(stored["spec"])
            digest = networks_digest(module.build_net(spec, self.config))
            require_networks(self.directory, stored, {"net_digest": digest})

    def _datasets(self) -> list[str]:
        return self.config.datasets() if hasattr(self.config, "datasets") else []

    def finished(self) -> bool:
        """Whether its directory holds this run, complete, and has kept what it was made of, to see that it is that."""
        try:
            stored = stored_run(self.directory, self.algorithm, self.config)
            status = read_status(self.directory)
        except (DeeprlError, OSError):
            return False
        if stored is None or status.get("state") not in COMPLETE:
            return False
        kept = set(self._datasets()) <= set(stored.get("datasets", {}))
        return kept and ("net_digest" in stored or not self.config.net)

    def frozen(self) -> list[dict[str, Any]]:
        """The agents that diverged, as `status.json` names them."""
        try:
            return list(read_status(self.directory).get("frozen", []))
        except DeeprlError:
            return []
