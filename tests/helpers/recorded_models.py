"""The recorded checkpoints as bundles made once, and their networks asked once: several tests look at the same answers."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import numpy as np

from offline_infer.engines.base import FloatArray, Session, SessionInfo
from offline_infer.locks import locked
from offline_infer.predict.model import Model, load

Make = Callable[[Path], object]


class MadeOnce:
    """Folders that the first test to want one makes, for every test of the run and every worker of pytest-xdist.

    Whoever gets a folder may only read it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str, make: Make) -> Path:
        """The folder of that name; ``make`` is called with its path, which does not exist yet, unless it is there."""
        folder, ready = self.root / name, self.root / f"{name}.ready"
        with locked(self.root / f"{name}.lock", wait=math.inf, make=True):
            if not ready.exists():
                make(folder)
                ready.touch()
        return folder


class Remembering:
    """A session that asks its network once about an input: answers lie in files, by the digest of the input's bytes.

    A network gives equal answers to equal inputs, so nothing that a test sees depends on who asked first; an input that
    differs in one bit is another one.
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self.session = session
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def info(self) -> SessionInfo:
        return self.session.info

    def answer(self, batch: FloatArray) -> Mapping[str, np.ndarray[Any, Any]]:
        file = self.folder / f"{hashlib.sha256(np.ascontiguousarray(batch)).hexdigest()}.npz"
        if not file.exists():
            partial = file.with_name(f"{uuid4().hex}.npz")
            np.savez(partial, **self.session.answer(batch))
            os.replace(partial, file)
        with np.load(file) as stored:
            return dict(stored)

    def run(self, batch: FloatArray) -> FloatArray:
        return next(iter(self.answer(batch).values()))

    def run_all(self, batch: FloatArray) -> dict[str, np.ndarray[Any, Any]]:
        return self.session.run_all(batch)

    def close(self) -> None:
        self.session.close()

    def __enter__(self) -> Remembering:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RecordedModels:
    """Bundles of the recorded checkpoints, and models that answer with them."""

    def __init__(self, goldens: Path, made_once: MadeOnce) -> None:
        self.goldens = goldens
        self.made_once = made_once

    def bundle(self, model: str, folds: Sequence[str] = ("0",)) -> Path:
        """The bundle of a checkpoint under the folder of goldens; not verified, which tests of the export do."""
        from offline_infer.checkpoints import Selection
        from offline_infer.exporting.bundles import export_bundle
        from offline_infer.exporting.options import ExportOptions

        def export(folder: Path) -> None:
            export_bundle(
                self.goldens / model, folder, selection=Selection(folds=folds), options=ExportOptions(verify=False)
            )

        return self.made_once(_name(model, folds), export)

    def open(self, model: str, folds: Sequence[str] = ("0",), previous: str | None = None) -> Model:
        """An opened model whose networks remember their answers.

        It has one thread, since the workers of the run share the cores.

        Args:
            model: folder of the checkpoint under the goldens.
            previous: folder of a cascade's first stage.
        """
        opened = load(self.bundle(model, folds), threads=1)
        digests = {graph.fold: graph.sha256 for graph in opened.spec.graphs}
        answers = self.made_once.root / "answers"
        own = opened.sessions
        opened.use_sessions(
            [Remembering(session, answers / digests[fold]) for fold, session in zip(folds, own, strict=True)]
        )
        opened.previous = self.open(previous) if previous else None
        return opened


def _name(model: str, folds: Sequence[str]) -> str:
    return hashlib.sha256(repr((model, tuple(folds))).encode()).hexdigest()[:16]
