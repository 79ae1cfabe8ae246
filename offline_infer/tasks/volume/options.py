"""Settings that only volume models have, beside those of :class:`offline_infer.tasks.settings.RunSettings`: none."""

from __future__ import annotations

from offline_infer.tasks.settings import TaskOption

OPTIONS: tuple[TaskOption, ...] = ()
