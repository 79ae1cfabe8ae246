"""SIGKILL at chosen moments: the same command finishes the job, and its results are those of an undisturbed run.

One moment a route by default; ``OFFLINE_INFER_KILLS=100 python -m pytest -s tests/reliability/test_kills.py`` tries a hundred
on each, those included that need torch or external tools. Half of the moments are file operations, the others any time.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from kill_routes import ROUTES, Job, Route, digest, finals, half_written, results
from killing import Moment, Programs, finish, kill_at, moments, programs

KILLS = int(os.environ.get("OFFLINE_INFER_KILLS", "1"))


TOGETHER = ("streaming", "evaluate", "ensemble", "image")
"""Routes of which two runs at once are tried in an ordinary run."""
REFUSALS = ("another process is", "another infer is", "is not empty", "exists")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    with programs(tmp_path_factory.mktemp("other")) as started:
        yield started


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    with programs(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    route: Route, server: Programs, tmp_path: Path
) -> None:
    if route.slow and KILLS == 1:
        pytest.skip("takes long: set OFFLINE_INFER_KILLS")
    route.prepare(Job(server, tmp_path))
    undisturbed = tmp_path / "undisturbed"
    lengths = []
    for command in route.commands(tmp_path, undisturbed):
        seconds = finish(server, command, route.environment)
        lengths.append((seconds, server.events()))
    wanted = results(route, undisturbed)
    assert wanted
    tried: Counter[str] = Counter()
    for number, (seconds, events) in enumerate(lengths):
        share = KILLS if len(lengths) == 1 else max(1, round(KILLS * seconds / sum(length for length, _ in lengths)))
        for moment in moments(f"{route.name} {number}", share, seconds, events):
            how = _kill_and_finish(route, server, tmp_path, wanted, number, moment)
            tried[how] += 1
            print(f"{route.name} {number}: {moment}: {how}", flush=True)
    print(f"\n{route.name}: {sum(tried.values())} moments, {dict(tried)}, {lengths}")


def _kill_and_finish(
    route: Route, server: Programs, root: Path, wanted: dict[str, bytes], step: int, moment: Moment
) -> str:
    """Kill one of a route's commands, then give it again; returns how the run had ended."""
    place = root / "killed"
    commands = route.commands(root, place)
    for command in commands[:step]:
        finish(server, command, route.environment)
    statuses = [kill_at(server, commands[step], route.environment, moment) for _ in range(1 + moment.again)]
    assert not half_written(place, wanted, route), moment
    before = finals(route, place)
    for command in commands[step:]:
        finish(server, command, route.environment)
    after = finals(route, place)
    redone = {path.name.split(".")[0] for path, stamp in before.items() if after.get(path) != stamp}
    assert len(redone) <= 1, f"{moment}: {sorted(redone)} were done again"
    found = results(route, place)
    assert digest(found) == digest(wanted), moment
    assert not list((place / "out").rglob(".*.partial*")), moment
    shutil.rmtree(place)
    return "killed" if statuses[0] == -signal.SIGKILL else f"ended with {statuses[0]}"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_of_two_runs_on_one_folder_the_second_refuses_or_shares(
    route: Route, server: Programs, other: Programs, tmp_path: Path
) -> None:
    if route.name not in TOGETHER and KILLS == 1:
        pytest.skip("takes long: set OFFLINE_INFER_KILLS")
    route.prepare(Job(server, tmp_path))
    for command in route.commands(tmp_path, tmp_path / "alone"):
        finish(server, command, route.environment)
    for delay in (0.0,) if KILLS == 1 else (0.0, 0.05, 0.2, 0.5):
        place = tmp_path / f"together_{delay:g}"
        commands = route.commands(tmp_path, place)
        for command in commands:
            server.start(command, route.environment)
            ended = server.wait(delay) if delay else None
            other.start(command, route.environment)
            statuses = sorted((server.wait() if ended is None else ended, other.wait()))
            said = server.said() + other.said()
            assert statuses in ([0, 0], [0, 2]), said
            assert statuses == [0, 0] or any(words in said for words in REFUSALS), said
            print(f"{route.name}: {command[0]} after {delay:g} s: {statuses}")
        assert not half_written(place, results(route, tmp_path / "alone"), route)
        for command in commands:
            finish(server, command, route.environment)
        assert digest(results(route, place)) == digest(results(route, tmp_path / "alone"))
        assert not list((place / "out").rglob(".*.partial*"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", ["streaming", "staged", "image"])
def test_a_signal_ends_in_one_sentence_and_the_same_command_goes_on(
    name: str, number: signal.Signals, status: int, server: Programs, tmp_path: Path
) -> None:
    route = next(route for route in ROUTES if route.name == name)
    route.prepare(Job(server, tmp_path))
    (command,) = route.commands(tmp_path, tmp_path / "usual")
    finish(server, command, route.environment)
    (again,) = route.commands(tmp_path, tmp_path / "disturbed")
    server.start(again, route.environment, server.events() // 2, ("signal", int(number)))
    assert server.wait() == status, server.said()
    (line,) = [line for line in server.said().splitlines() if "interrupted" in line]
    assert "the same command goes on" in line
    assert "Traceback" not in server.said()
    finish(server, again, route.environment)
    assert results(route, tmp_path / "disturbed") == results(route, tmp_path / "usual")
