"""What TensorBoard's HParams tab shows of an agent: its settings, and whether it has come to its end.

The metrics of the tab are the last values of the agent's own scalars. No experiment is declared, which would fix the
columns for all runs of a log directory: the plugin takes them from what it finds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from deeprl.config import RunConfig, identity


def hparams_of(algorithm: str, config: RunConfig, member: int) -> dict[str, bool | float | str]:
    """What sets an agent of a population apart, as the tab can hold it: other values than numbers and text as JSON."""
    found = {"algorithm": algorithm, **identity(config.member(member))}
    found["seed"] = found.pop("seeds")[0]
    return {k: v if isinstance(v, bool | int | float | str) else json.dumps(v) for k, v in found.items()}


def session_start(hparams: Mapping[str, bool | float | str]) -> Any:
    """A `Summary` (of TensorBoard's protobuf messages) with which an agent's events begin."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

    start = SessionStartInfo(start_time_secs=time.time())
    for name, value in hparams.items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, str):
            start.hparams[name].string_value = value
        else:
            start.hparams[name].number_value = value
    return _summary("_hparams_/session_start_info", HParamsPluginData(session_start_info=start))


def session_end(success: bool) -> Any:
    """The `Summary` with which they end."""
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    status = Status.Value("STATUS_SUCCESS" if success else "STATUS_FAILURE")
    end = SessionEndInfo(status=status, end_time_secs=time.time())
    return _summary("_hparams_/session_end_info", HParamsPluginData(session_end_info=end))


def _summary(tag: str, data: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.metadata import NULL_TENSOR, create_summary_metadata

    return Summary(value=[Summary.Value(tag=tag, metadata=create_summary_metadata(data), tensor=NULL_TENSOR)])
