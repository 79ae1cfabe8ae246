"""The streaming route's shortcuts change nothing: parts, threads, constant tiles, half-precision casts, memory given up."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from specimens import tiny_spec, with_outputs
from staged_samples import RampSession, direct, prepared_case, segment, sessions_for, write_case

from offline_infer.arithmetic import half_precision as half_sums
from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.arithmetic.half_precision import half_to_single, mean_of_folds, round_to_half, single_to_half
from offline_infer.arithmetic.sliding_window import constant_key
from offline_infer.engines.base import FloatArray
from offline_infer.errors import EngineFailed
from offline_infer.spec import Channel, VolumeSpec
from offline_infer.tasks.settings import RunSettings
from offline_infer.tasks.volume import aggregation as aggregate
from offline_infer.tasks.volume import tiles
from offline_infer.tasks.volume.preparing import PreparedCase, prepare
from offline_infer.threads import ThreadBuffers


@dataclass
class Recorder:
    """A session that keeps its inputs and answers in one buffer, as engines do."""

    inner: RampSession
    inputs: list[FloatArray] = field(default_factory=list)
    buffer: FloatArray | None = None

    def run(self, batch: FloatArray) -> FloatArray:
        self.inputs.append(batch.copy())
        answer = self.inner.run(batch)
        if self.buffer is None:
            self.buffer = np.empty_like(answer)
        self.buffer[...] = answer
        return self.buffer

    def answer(self, batch: FloatArray) -> dict[str, FloatArray]:
        return {"logits": self.run(batch)}


def air_and_body(spec: VolumeSpec, tmp_path: Path) -> PreparedCase:
    """A case whose left half and far end are constant."""
    prepared = prepared_case(spec, write_case(tmp_path, "a", shape=(20, 20, 48)))
    prepared.array[:, :, :, :34] = prepared.array.min()
    prepared.array[:, 10:] = 0.25
    return prepared


@pytest.mark.parametrize("folds", [("0",), ("0", "1")])
@pytest.mark.parametrize("accumulate", ["float32", "float16"])
def test_constant_tiles_are_asked_once_and_change_nothing(
    tmp_path: Path, folds: tuple[str, ...], accumulate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = with_outputs(tiny_spec(folds=folds))
    prepared = air_and_body(spec, tmp_path)
    chosen = RunSettings(accumulate=accumulate)
    recorders = [Recorder(session) for session in sessions_for(spec).values()]
    saved = segment(prepared, spec, recorders, chosen)  # type: ignore[arg-type]
    monkeypatch.setattr(tiles, "constant_key", lambda tile: None)
    plain = [Recorder(session) for session in sessions_for(spec).values()]
    full = segment(prepared, spec, plain, chosen)  # type: ignore[arg-type]
    np.testing.assert_array_equal(saved.labels, full.labels)
    assert len(recorders[0].inputs) < 0.7 * len(plain[0].inputs)
    for recorder in recorders:
        constant = [batch for batch in recorder.inputs if np.ptp(batch) == 0]
        assert len({float(batch.flat[0]) for batch in constant}) == 2
        assert len(constant) <= 4  # one answer is kept, and another may still be in the buffer


def test_zero_and_minus_zero_are_different_inputs() -> None:
    tile = np.zeros((1, 2, 3, 4), np.float32)
    assert constant_key(tile) == (0,)
    tile[0, 1, 2, 3] = -0.0
    assert constant_key(tile) is None
    two = np.stack([np.full((2, 3, 4), 1.5, np.float32), np.full((2, 3, 4), -2, np.float32)])
    assert constant_key(two) == tuple(int(v) for v in np.array([1.5, -2], np.float32).view(np.uint32))


@pytest.mark.parametrize("domain", ["logits", "probabilities"])
@pytest.mark.parametrize("accumulate", ["float32", "float16"])
@pytest.mark.parametrize("threads", [1, 3])
def test_parts_and_threads_change_no_bit(
    tmp_path: Path, domain: str, accumulate: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = with_outputs(tiny_spec(folds=("0", "1")))
    spec = spec.model_copy(update={"aggregation": spec.aggregation.model_copy(update={"domain": domain})})
    case = write_case(tmp_path, "a", shape=(20, 26, 30))
    chosen = RunSettings(accumulate=accumulate, save_probabilities=True, postprocess=False)
    whole = direct(spec, case, chosen)
    monkeypatch.setattr(aggregate, "_PART", 100)
    monkeypatch.setattr(aggregate, "_WORTH_SHARING", 0)
    parts = segment(prepared_case(spec, case), spec, list(sessions_for(spec).values()), chosen, threads=threads)
    np.testing.assert_array_equal(parts.labels, whole.labels)
    assert parts.probabilities is not None
    assert whole.probabilities is not None
    np.testing.assert_array_equal(parts.probabilities, whole.probabilities)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_number_anywhere_is_noticed(tmp_path: Path, bad: float) -> None:
    spec = with_outputs(tiny_spec())
    prepared = prepared_case(spec, write_case(tmp_path, "a"))

    class Bad(RampSession):
        def run(self, batch: FloatArray) -> FloatArray:
            answer = super().run(batch)
            answer[0, 1, 3, 5, 7] = bad
            return answer

    with pytest.raises(EngineFailed, match="NaN or infinite"):
        segment(prepared, spec, [Bad(spec)], RunSettings())


def test_answers_too_large_for_half_precision_are_refused_there(tmp_path: Path) -> None:
    spec = with_outputs(tiny_spec())
    prepared = prepared_case(spec, write_case(tmp_path, "a"))

    class Large(RampSession):
        def run(self, batch: FloatArray) -> FloatArray:
            return super().run(batch) * np.float32(1e5)

    with pytest.raises(EngineFailed, match="accumulate-float32"):
        segment(prepared, spec, [Large(spec)], RunSettings(accumulate="float16"))
    segment(prepared, spec, [Large(spec)], RunSettings(accumulate="float32"))


def test_every_half_precision_number_is_cast_exactly() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    out = np.empty(halves.shape, np.float32)
    half_to_single(halves, out)
    np.testing.assert_array_equal(out.view(np.uint32), halves.astype(np.float32).view(np.uint32))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rounding_to_half_precision_is_numpys(seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2**32, 5000, dtype=np.uint32)
    halves = np.arange(0, 31743, 7, dtype=np.uint16).view(np.float16).astype(np.float32)
    above = np.nextafter(halves, np.float32(np.inf))
    ties = (halves + np.arange(1, 31744, 7, dtype=np.uint16)[: len(halves)].view(np.float16).astype(np.float32)) / 2
    values = np.concatenate([bits.view(np.float32), halves, above, ties, -ties, np.nextafter(ties, np.float32(0))])
    values = values[np.abs(values) < 65520]
    expected = values.astype(np.float16)
    out = np.empty(values.shape, np.float16)
    single_to_half(values.copy(), out, ThreadBuffers())
    np.testing.assert_array_equal(out.view(np.uint16), expected.view(np.uint16))
    wide = np.empty(values.shape, np.float32)
    round_to_half(values.copy(), wide, ThreadBuffers())
    np.testing.assert_array_equal(wide, expected.astype(np.float32))


@pytest.mark.parametrize("bad", [65520.0, -65520.0, 1e30, np.inf, -np.inf, np.nan])
def test_what_does_not_fit_half_precision_is_refused(bad: float) -> None:
    values = np.array([1.0, bad, 2.0], np.float32)
    with pytest.raises(EngineFailed, match="half precision"):
        round_to_half(values.copy(), values.copy(), ThreadBuffers())
    with pytest.raises(EngineFailed, match="half precision"):
        single_to_half(values.copy(), np.empty(3, np.float16), ThreadBuffers())


def test_both_ways_to_keep_half_precision_sums_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = with_outputs(tiny_spec())
    prepared = prepared_case(spec, write_case(tmp_path, "a"))
    run = RunSettings(accumulate="float16", save_probabilities=True)
    sessions = [RampSession(spec), RampSession(spec)]
    wide = segment(prepared, spec, sessions, run)
    monkeypatch.setattr(half_sums, "WIDE_BYTES", 0)
    packed = segment(prepared, spec, sessions, run)
    np.testing.assert_array_equal(wide.labels, packed.labels)
    assert wide.probabilities is not None
    assert packed.probabilities is not None
    np.testing.assert_array_equal(wide.probabilities, packed.probabilities)


def test_the_mean_of_folds_rounds_like_half_precision() -> None:
    rng = np.random.default_rng(3)
    parts = [rng.normal(scale=20, size=(2, 3, 5)).astype(np.float16) for _ in range(5)]
    expected = mean_of_folds([part.copy() for part in parts])
    assert expected.dtype == np.float16
    wide = mean_of_folds([part.astype(np.float32) for part in parts])
    np.testing.assert_array_equal(wide, expected.astype(np.float32))


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("scheme", ["ct", "zscore"])
@pytest.mark.parametrize("spacing", [1.5, 2.0])
@pytest.mark.parametrize("border", [False, True])
def test_an_image_given_up_is_prepared_the_same(after: bool, scheme: str, spacing: float, border: bool) -> None:
    spec = tiny_spec(scheme=scheme).model_copy(update={"normalize_after_resampling": after})
    channel: Channel = spec.channels[0].model_copy(update={"use_mask": scheme == "zscore"})
    spec = spec.model_copy(update={"channels": (channel,)})
    image = np.random.default_rng(0).normal(60, 90, (1, 12, 16, 20)).astype(np.float32)
    if border:
        image[:, :3] = image[:, :, :, 15:] = 0
    frame = ImageGeometry((12, 16, 20), (spacing,) * 3, (0.0,) * 3, (1.0, 0, 0, 0, 1, 0, 0, 0, 1), (spacing,) * 3)
    before = image.copy()
    kept = prepare(image, frame, spec)
    np.testing.assert_array_equal(image, before)
    given_up = prepare(image, frame, spec, consume=True)
    np.testing.assert_array_equal(given_up.array, kept.array)
    assert given_up.geometry == kept.geometry
