"""Commands about data and the machine: demo, doctor, dataset helpers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from offline_infer.commands.common import Subparsers, cache_folder, command, existing, say, show_outcome, sink_for
from offline_infer.errors import CasesFailed
from offline_infer.tasks.registry import DEFAULT_TASK, demonstrated


def register(commands: Subparsers) -> None:
    """Add these commands to the parser."""
    parser = command(commands, "demo", demo, "predict and evaluate with a shipped model: phantom CTs, or drawn objects")
    parser.add_argument("-o", "--output", type=Path, default=Path("demo_out"), metavar="DIR", help="default demo_out")
    parser.add_argument(
        "--task", default=DEFAULT_TASK, choices=demonstrated(), help=f"kind of model to show, default {DEFAULT_TASK}"
    )
    parser.add_argument(
        "--cases", type=int, metavar="N", help="number of cases to make, default the demonstration's own"
    )
    parser.add_argument("--engine", default="openvino", help="openvino (default) or onnxruntime")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="processor threads, 0 = all")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demonstration")

    parser = command(commands, "phantoms", phantoms, "write phantom CTs with their reference label maps")
    parser.add_argument("output", type=Path, help="folder; gets images/ and labels/")
    parser.add_argument("--cases", type=int, default=3, metavar="N")
    parser.add_argument(
        "--seed", type=int, default=9001, help="seed of the first one; 9001 on were not used in training"
    )

    parser = command(commands, "doctor", doctor, "what this machine can run: engines, devices, tools, memory")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for compiled graphs, default the user's own")
    parser.add_argument("--clear-cache", action="store_true", help="delete the compiled graphs")

    parser = command(
        commands, "convert-msd", convert_msd, "a Medical Segmentation Decathlon task folder to nnU-Net naming"
    )
    parser.add_argument("task", type=Path, help="folder such as Task03_Liver")
    parser.add_argument("output", type=Path, help="folder in which Task003_Liver or the like is made")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, metavar="N")

    parser = command(commands, "pick-fold", pick_fold, "put a fold's validation cases into an input folder")
    parser.add_argument("splits", type=Path, help="splits_final.pkl or splits_final.json")
    parser.add_argument("images", type=Path, help="imagesTr")
    parser.add_argument("output", type=Path, help="input folder to make")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--place", default="symlink", choices=["symlink", "hardlink", "copy"])
    parser.add_argument("--labels", type=Path, metavar="DIR", help="labelsTr: also place the reference label maps")
    parser.add_argument("--labels-output", type=Path, metavar="DIR")


def demo(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer demo``."""
    from offline_infer.demo.run import run_demo

    outcome = run_demo(
        options.output,
        task=options.task,
        cases=options.cases,
        engine=options.engine,
        threads=options.threads,
        overwrite=options.overwrite,
        sink=sink_for(options),
    )
    return show_outcome(options, outcome)


def phantoms(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer phantoms``."""
    from offline_infer.demo.phantom import make_phantom, write_phantom_case

    written = []
    for number in range(options.cases):
        phantom = make_phantom(options.seed + number)
        name = f"phantom_{options.seed + number}"
        image, _ = write_phantom_case(options.output / "images", options.output / "labels", name, phantom)
        written.append(str(image))
    say(options, *written)
    return {"images": written}


def doctor(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer doctor``."""
    from offline_infer.doctor import examine

    facts, lines = examine()
    folder = cache_folder(options.cache)
    if folder is not None:
        facts["compiled_graphs"] = _compiled_graphs(folder, clear_it=options.clear_cache)
        lines.append(f"compiled       {facts['compiled_graphs']['text']}")
    say(options, *lines)
    return facts


def _compiled_graphs(folder: Path, *, clear_it: bool) -> dict[str, Any]:
    """What the cache of compiled graphs holds, or held until now."""
    from offline_infer.engines.compiled_cache import clear, entries

    found = clear(folder) if clear_it else entries(folder)
    size = sum(entry.size for entry in found)
    verb = "deleted from" if clear_it else "in"
    text = f"{len(found)} graphs, {size / 1e6:.0f} MB {verb} {folder}"
    return {"folder": str(folder), "graphs": len(found), "bytes": size, "cleared": clear_it, "text": text}


def convert_msd(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer convert-msd``."""
    from offline_infer.images.datasets import convert_msd_task

    result = convert_msd_task(
        existing(options.task), options.output, overwrite=options.overwrite, jobs=options.jobs, sink=sink_for(options)
    )
    say(options, f"{result.folder}: {result.written} files written, {result.present} already there")
    if result.problems:
        raise CasesFailed(result.problems, result.written + result.present + len(result.problems))
    return {"folder": str(result.folder), "written": result.written, "present": result.present}


def pick_fold(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer pick-fold``."""
    from offline_infer.images.datasets import pick_validation_cases

    result = pick_validation_cases(
        existing(options.splits),
        options.fold,
        existing(options.images),
        options.output,
        copy_or_link=options.place,
        labels_folder=options.labels,
        labels_output=options.labels_output,
    )
    say(options, f"{options.output}: {len(result.cases)} cases of fold {options.fold}: {', '.join(result.cases)}")
    return {"cases": list(result.cases), "placed": result.placed, "present": result.present}
