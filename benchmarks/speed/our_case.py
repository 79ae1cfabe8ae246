"""One case through this package, stage by stage. Runs in its own environment, in a fresh process."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from shared import peak_rss, report, rss, stand_in_answer

from offline_infer.engines.base import SessionInfo
from offline_infer.events import Event
from offline_infer.images.cases import CaseFiles
from offline_infer.predict.folder import FolderJob, predict_folder
from offline_infer.predict.model import load
from offline_infer.tasks.settings import RunSettings

job = json.loads(sys.argv[1])


class StandIn:
    """Answers every input with the same logits."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        self.logits = stand_in_answer(classes, shape[2:])
        self.info = SessionInfo("stand-in", "1", "cpu", "fp32", shape, ("logits",))

    def answer(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        return {"logits": self.logits}

    def close(self) -> None:
        pass


class Timed:
    """A session whose calls are timed."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.info = session.info
        self.seconds: list[float] = []
        self.processor: list[float] = []

    def answer(self, batch: np.ndarray) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        answer = self._session.answer(batch)
        self.seconds.append(time.perf_counter() - start)
        self.processor.append(time.process_time() - cpu)
        return answer

    def close(self) -> None:
        self._session.close()


class Torch:
    """The bundle's network as the torch module it was made from: the peer of a UNet++, which nnU-Net v2 cannot run."""

    def __init__(self, shape: tuple[int, ...], classes: int, threads: int) -> None:
        import torch
        from networks import unetplusplus

        torch.set_num_threads(threads)
        self._network = unetplusplus(classes)
        self.info = SessionInfo("torch", torch.__version__, "cpu", "fp32", shape, ("logits",))

    def answer(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        import torch

        with torch.inference_mode():
            return {"logits": np.asarray(self._network(torch.from_numpy(batch)).numpy())}

    def close(self) -> None:
        pass


def main() -> None:
    output = Path(job["output"])
    estimate: dict[str, Any] = {}

    def sink(event: Event) -> None:
        if event.kind == "estimate":
            estimate.update(event.data)

    engine = job.get("engine", "openvino")
    with load(
        job["bundle"],
        engine="openvino" if engine in ("stand-in", "torch") else engine,
        precision=job.get("precision", "fp32"),
        threads=job["threads"],
        cache=job.get("cache"),
    ) as model:
        spec = model.spec
        if engine == "stand-in":
            model.use_sessions([StandIn(spec.input_shape, spec.labels.channels)])
        elif engine == "torch":
            timed = Timed(Torch(spec.input_shape, spec.labels.channels, job["threads"]))
            model.use_sessions([timed])
        else:
            timed, *others = [Timed(session) for session in model.sessions]
            model.use_sessions([timed, *others])
        if engine != "stand-in":  # the first call pays for memory that all others use again
            timed.answer(np.zeros(spec.input_shape, np.float32))
            timed.seconds.clear()
            timed.processor.clear()
        base = rss()
        start, cpu = time.perf_counter(), time.process_time()
        done = predict_folder(
            model,
            FolderJob(
                [CaseFiles("case", (Path(job["image"]),))], output, existing="overwrite", memory=job.get("memory")
            ),
            RunSettings(tta=job["tta"], accumulate=job.get("accumulate", "framework")),
            sink,
        )
        whole, cpu = time.perf_counter() - start, time.process_time() - cpu
        done.raise_failures()
        report(
            {
                "whole_s": whole,
                "cpu_s": cpu,
                "stages": {name: {"wall_s": value} for name, value in done.cases[0].seconds.items()},
                "tiles_s": getattr(model.sessions[0], "seconds", []),
                "tiles_cpu_s": getattr(model.sessions[0], "processor", []),
                "memory": done.cases[0].memory,
                "estimate": estimate,
                "base_rss": base,
                "peak_rss": peak_rss(),
            }
        )


main()
