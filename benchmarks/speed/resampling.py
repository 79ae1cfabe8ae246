"""Order-3 resampling of a volume: skimage's resize, which nnU-Net calls, against this package's, in one process."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from shared import report
from skimage.transform import resize

from offline_infer.resampling import resample_image
from offline_infer.spec import Resampling

job = json.loads(sys.argv[1])


def main() -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(size=job["shape"]).astype(np.float32)
    target = tuple(job["target"])
    ours, theirs = [], []
    resample_image(volume[None], target, (1, 1, 1), (1, 1, 1), Resampling(), threads=job["threads"])  # builds operators
    for _ in range(job["repeats"]):
        start = time.perf_counter()
        mine = resample_image(volume[None], target, (1, 1, 1), (1, 1, 1), Resampling(), threads=job["threads"])[0]
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        reference = resize(volume.astype(float), target, 3, mode="edge", anti_aliasing=False)
        theirs.append(time.perf_counter() - start)
    report({"ours_s": ours, "skimage_s": theirs, "max_abs_difference": float(np.abs(mine - reference).max())})


main()
