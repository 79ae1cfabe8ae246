"""A case of the published flow, from its folders to the label map."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from staged_samples import (
    RampSession,
    direct,
    five_heads,
    postprocess,
    prepared_case,
    sessions_for,
    staged_spec,
    write_case,
)

from offline_infer.arithmetic.sliding_window import cut_tile
from offline_infer.errors import UsageError
from offline_infer.images import read_labels
from offline_infer.images.cases import CaseFiles
from offline_infer.spec import VolumeSpec
from offline_infer.staging.inferring import infer_stage
from offline_infer.staging.legacy_import import ImportReport, LegacyFolders, import_case
from offline_infer.staging.legacy_tiles import legacy_case, legacy_stem, write_shape_file
from offline_infer.staging.worklist import Worklist
from offline_infer.tasks.settings import RunSettings
from offline_infer.tasks.volume.tiles import case_grid


def published_axes(code: int) -> tuple[int, ...]:
    """Flipped axes of (z, y, x) by the published scripts: bit 0 flips x, bit 1 y, bit 2 z."""
    return tuple(axis for axis in range(3) if code >> (2 - axis) & 1)


SETTINGS = RunSettings()
PATTERNS = {"benchmark": "{stem}_{n}.bin", "ais_bench": "{stem}_{n}.bin", "msame": "{stem}_output_{n}.bin"}


def _publish(spec: VolumeSpec, case: CaseFiles, place: Path, tool: str, heads: range = range(5)) -> LegacyFolders:
    """What the published scripts and a tool would leave behind: eight copies of every tile, five heads of each."""
    base = 1 if tool == "benchmark" else 0
    prepared, name = prepared_case(spec, case), legacy_case(case.case_id)
    grid = case_grid(spec, prepared.geometry.network_shape, SETTINGS)
    tiles, results = place / "input_bins", place / "result"
    tiles.mkdir(parents=True)
    results.mkdir()
    sizes = " ".join(str(size) for size in grid.padded_shape)
    starts = "-".join(",".join(map(str, axis)) for axis in grid.starts)
    (place / "all_shape.txt").write_text(f"{name} {sizes}-{starts}")
    session, tile = RampSession(five_heads(spec)), np.empty((spec.input_channels, *grid.patch), np.float32)
    for start in grid:
        cut_tile(prepared.array, grid, start, tile)
        for code in range(8):
            turned = np.ascontiguousarray(np.flip(tile, tuple(axis + 1 for axis in published_axes(code))))
            stem = legacy_stem(name, start, grid.patch, code)
            turned.tofile(tiles / f"{stem}.bin")
            answers = list(session.run_all(turned[None]).values())
            for head in heads:
                answers[head].tofile(results / PATTERNS[tool].format(stem=stem, n=head + base))
    return LegacyFolders(place / "all_shape.txt", tiles, results)


def _labels(spec: VolumeSpec, work: Path, output: Path, case: CaseFiles) -> np.ndarray:
    postprocess(spec, work, output).raise_failures()
    return read_labels(output / f"{case.case_id}.nii.gz")[0]


@pytest.fixture
def case(tmp_path: Path) -> CaseFiles:
    return write_case(tmp_path / "images", "liver_11", seed=3)


@pytest.mark.parametrize("tool", ["benchmark", "msame", "ais_bench"])
@pytest.mark.parametrize("bundle_heads", [1, 5])
def test_five_heads_of_every_tool(tmp_path: Path, case: CaseFiles, tool: str, bundle_heads: int) -> None:
    spec = staged_spec() if bundle_heads == 1 else five_heads(staged_spec())
    folders = _publish(spec, case, tmp_path / "old", tool)
    folders = LegacyFolders(folders.shapes, folders.tiles, folders.results, tool)
    report = import_case(spec, case, tmp_path / "work", folders, threads=1)
    assert (report.items, report.outputs, report.tool) == (64, 64, tool)
    assert report.largest_difference == 0
    json.dumps(report.to_json())
    assert len(Worklist.load(tmp_path / "work").header.outputs) == 5
    np.testing.assert_array_equal(
        _labels(spec, tmp_path / "work", tmp_path / "out", case), direct(spec, case, SETTINGS).labels
    )
    # Linked, not copied, and the old folders are untouched.
    item = Worklist.load(tmp_path / "work").items()[0]
    assert os.path.samefile(tmp_path / "work" / item.file, tmp_path / "old" / "input_bins" / f"{item.stem}.bin")
    assert len(list((tmp_path / "old" / "result").iterdir())) == 5 * 64


def test_the_wrong_numbering_would_show(tmp_path: Path, case: CaseFiles) -> None:
    """The trap this module exists for: the same folder read with the other tool's numbering gives another label map."""
    spec = staged_spec()
    folders = _publish(spec, case, tmp_path / "old", "ais_bench")
    with pytest.raises(UsageError, match="final head is _0 for ais_bench and _1 for benchmark"):
        import_case(spec, case, tmp_path / "w0", folders, threads=1)
    assert not (tmp_path / "w0").exists()
    wrong = LegacyFolders(folders.shapes, folders.tiles, folders.results, "benchmark")
    import_case(spec, case, tmp_path / "w1", wrong, threads=1)
    labels = _labels(spec, tmp_path / "w1", tmp_path / "out", case)
    assert np.mean(labels == direct(spec, case, SETTINGS).labels) < 0.9


def test_only_tiles_then_our_engine(tmp_path: Path, case: CaseFiles) -> None:
    spec = staged_spec()
    folders = _publish(spec, case, tmp_path / "old", "msame", range(0))
    report = import_case(spec, case, tmp_path / "work", LegacyFolders(folders.shapes, folders.tiles), threads=1)
    assert (report.outputs, report.tool) == (0, None)
    infer_stage(tmp_path / "work", sessions_for(spec), spec=spec).raise_failures()
    np.testing.assert_array_equal(
        _labels(spec, tmp_path / "work", tmp_path / "out", case), direct(spec, case, SETTINGS).labels
    )


def test_only_results_are_left(tmp_path: Path, case: CaseFiles) -> None:
    spec = staged_spec()
    folders = _publish(spec, case, tmp_path / "old", "msame", range(1))
    report = import_case(spec, case, tmp_path / "work", LegacyFolders(folders.shapes, None, folders.results), threads=1)
    assert (report.outputs, report.tool, report.largest_difference) == (64, "msame", None)
    np.testing.assert_array_equal(
        _labels(spec, tmp_path / "work", tmp_path / "out", case), direct(spec, case, SETTINGS).labels
    )
    # The checksum of a bin that is not there is that of the bin that was.
    item = Worklist.load(tmp_path / "work").items()[7]
    os.link(tmp_path / "old" / "input_bins" / f"{item.stem}.bin", tmp_path / "work" / item.file)
    session = RampSession(spec)
    (tmp_path / "work" / "outputs" / "imported" / f"{item.stem}_output_0.bin").unlink()
    infer_stage(tmp_path / "work", {"0": session}).raise_failures()
    assert session.calls == 1


def test_missing_results_are_counted_and_can_be_made_up_for(tmp_path: Path, case: CaseFiles) -> None:
    spec = staged_spec()
    folders = _publish(spec, case, tmp_path / "old", "benchmark", range(1))
    for path in sorted(folders.results.iterdir())[:5]:  # type: ignore[union-attr]
        path.unlink()
    report = import_case(spec, case, tmp_path / "work", folders, threads=1)
    assert report.outputs == 59
    assert any("5 of 64 results are missing" in note for note in report.notes)
    assert "5 of 64" in postprocess(spec, tmp_path / "work", tmp_path / "out").failures["liver_11"]
    infer_stage(tmp_path / "work", sessions_for(spec)).raise_failures()
    np.testing.assert_array_equal(
        _labels(spec, tmp_path / "work", tmp_path / "out", case), direct(spec, case, SETTINGS).labels
    )


def test_a_single_tile_and_a_hyphen(tmp_path: Path) -> None:
    """Both break the published merging script."""
    spec = staged_spec()
    case = write_case(tmp_path / "images", "a-b-1", (8, 12, 16), seed=5)
    folders = _publish(spec, case, tmp_path / "old", "benchmark", range(1))
    report: ImportReport = import_case(spec, case, tmp_path / "work", folders, threads=1)
    assert any("single tile" in note for note in report.notes)
    np.testing.assert_array_equal(
        _labels(spec, tmp_path / "work", tmp_path / "out", case), direct(spec, case, SETTINGS).labels
    )


def test_fewer_mirrors_than_the_scripts_write(tmp_path: Path, case: CaseFiles) -> None:
    spec = staged_spec()
    spec = spec.model_copy(update={"window": spec.window.model_copy(update={"mirror_axes": (1, 2)})})
    folders = _publish(spec, case, tmp_path / "old", "benchmark", range(1))
    report = import_case(spec, case, tmp_path / "work", folders, threads=1)
    assert report.items == 32
    assert any("mirrors 4 of the 8 ways" in note for note in report.notes)
    np.testing.assert_array_equal(
        _labels(spec, tmp_path / "work", tmp_path / "out", case), direct(spec, case, SETTINGS).labels
    )


def test_several_cases_in_one_folder(tmp_path: Path, case: CaseFiles) -> None:
    spec = staged_spec()
    other = write_case(tmp_path / "images", "liver_12.x", (8, 14, 20), seed=4)
    import_case(spec, case, tmp_path / "work", _publish(spec, case, tmp_path / "one", "msame"), threads=1)
    import_case(spec, other, tmp_path / "work", _publish(spec, other, tmp_path / "two", "msame", range(1)), threads=1)
    with pytest.raises(UsageError, match="already in"):
        import_case(spec, case, tmp_path / "work", LegacyFolders(tmp_path / "one" / "all_shape.txt"), threads=1)
    for each in (case, other):
        np.testing.assert_array_equal(
            _labels(spec, tmp_path / "work", tmp_path / "out", each), direct(spec, each, SETTINGS).labels
        )


def test_what_does_not_belong_together_is_refused(tmp_path: Path, case: CaseFiles) -> None:
    spec = staged_spec()
    folders = _publish(spec, case, tmp_path / "old", "msame", range(1))
    other = write_case(tmp_path / "other", "liver_11", seed=99)
    with pytest.raises(UsageError, match="cut from another image"):
        import_case(spec, other, tmp_path / "work", folders, threads=1)
    larger = write_case(tmp_path / "larger", "liver_11", (10, 14, 30))
    with pytest.raises(UsageError, match=r"padded shape \(10, 14, 20\), the model gives \(10, 14, 30\)"):
        import_case(spec, larger, tmp_path / "work", folders, threads=1)
    with pytest.raises(UsageError, match="step size the tiles were cut with"):
        import_case(spec, case, tmp_path / "work", folders, settings=RunSettings(step_size=0.1), threads=1)
    result = next(iter(folders.results.iterdir()))  # type: ignore[union-attr]
    result.write_bytes(b"short")
    with pytest.raises(UsageError, match="has 5 bytes; one output"):
        import_case(spec, case, tmp_path / "work", folders, threads=1)
    result.unlink()
    assert import_case(spec, case, tmp_path / "work", folders, threads=1).outputs == 63
    next(folders.tiles.glob("*_3.bin")).unlink()  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="is missing; the tiles"):
        import_case(spec, case, tmp_path / "work2", folders, threads=1)


def test_another_disk_needs_a_copy(tmp_path: Path, case: CaseFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = staged_spec()
    folders = _publish(spec, case, tmp_path / "old", "msame", range(1))

    def other_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    with pytest.raises(UsageError, match="have the files copied"):
        import_case(spec, case, tmp_path / "work", folders, threads=1)
    copied = LegacyFolders(folders.shapes, folders.tiles, folders.results, copy=True)
    assert import_case(spec, case, tmp_path / "work", copied, threads=1).outputs == 64


def test_our_tiles_can_be_read_by_the_published_names(tmp_path: Path, case: CaseFiles) -> None:
    spec = staged_spec()
    grid = case_grid(spec, prepared_case(spec, case).geometry.network_shape, SETTINGS)
    text = write_shape_file(tmp_path, case.case_id, grid).read_text()
    assert text == "liver_11 10 14 20-0,2-0,2-0,4\n"
