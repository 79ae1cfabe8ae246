"""What ends a run, and what costs one case."""

from __future__ import annotations

import errno

import pytest

from offline_infer.errors import DiskBudgetError, ImageError, UsageError
from offline_infer.proof.evaluation.pool import raise_if_fatal


def test_a_full_disk_behind_another_error_ends_the_run() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "a.nii.gz")
        except OSError as error:
            raise ImageError("a.nii.gz: cannot be written") from error
    except ImageError as error:
        with pytest.raises(DiskBudgetError, match=r"full while working on case a \(a\.nii\.gz\)"):
            raise_if_fatal(error, "a", "predict")


def test_only_what_concerns_every_case_ends_the_run() -> None:
    raise_if_fatal(ImageError("damaged"), "a", "predict")
    raise_if_fatal(OSError(errno.EIO, "Input/output error"), "a", "predict")
    with pytest.raises(UsageError):
        raise_if_fatal(UsageError("gone"), "a", "predict")
