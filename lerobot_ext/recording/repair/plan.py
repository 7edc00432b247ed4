"""Decides what becomes of each episode of a damaged dataset: kept, rebuilt or lost, and why.

Works on what `read` found and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot_ext.errors import UserError
from lerobot_ext.recording.repair.places import Place, locate
from lerobot_ext.recording.repair.read import INFO, STATS, TASKS, Found, Run

KEPT, REBUILT, LOST = "kept", "rebuilt", "lost"


@dataclass
class Episode:
    """One episode and what becomes of it.

    Attributes:
        index: Its number in the damaged folder.
        status: KEPT as it is, REBUILT from what is there, or LOST.
        reasons: Why it is lost, or what is made again.
        run: Its rows; None if there are none.
        row: Its row in meta/episodes; None if it has to be made.
        places: Its frames in each camera's videos.
        frames: How many it has, or had; 0 if nothing tells.
        new_index: Its number in the repaired folder; -1 if it is lost.
    """

    index: int
    status: str = KEPT
    reasons: list[str] = field(default_factory=list)
    run: Run | None = None
    row: dict[str, Any] | None = None
    places: dict[str, Place] = field(default_factory=dict)
    frames: int = 0
    new_index: int = -1

    def lose(self, why: str) -> None:
        """It is lost because of `why`."""
        self.status = LOST
        self.reasons.append(why)


@dataclass
class Plan:
    """What has to be done.

    Attributes:
        episodes: All that are known of.
        tasks: Task of each task_index.
        faults: What is wrong with the folder, apart from its episodes.
        notes: What else the user should know; nothing has to be done about it.
    """

    episodes: list[Episode]
    tasks: dict[int, str]
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def kept(self) -> list[Episode]:
        """The episodes of the repaired folder, in order."""
        return [episode for episode in self.episodes if episode.status != LOST]

    @property
    def lost(self) -> list[Episode]:
        """The others."""
        return [episode for episode in self.episodes if episode.status == LOST]

    @property
    def healthy(self) -> bool:
        """Whether there is nothing to do."""
        return not self.faults and all(episode.status == KEPT for episode in self.episodes)


def decide(found: Found, given_tasks: list[str]) -> Plan:
    """Decide about every episode.

    Args:
        found: What was read.
        given_tasks: Texts of the tasks whose own are lost, in the order of their numbers.

    Raises:
        UserError: A task's text is lost and not given.
    """
    faults = _faults(found)
    runs = _chosen_runs(found, faults)
    counted = int(found.info.get("total_episodes") or 0)
    indices = sorted({*runs, *found.rows, *range(counted)})
    episodes = [Episode(index, run=runs.get(index), row=found.rows.get(index)) for index in indices]
    for episode in episodes:
        _judge_rows(episode, found, counted)
    _judge_order(episodes)
    _judge_frames(episodes, found)
    plan = Plan(episodes, {}, faults)
    for number, episode in enumerate(plan.kept):
        episode.new_index = number
        if episode.row is None:
            episode.status = REBUILT
            episode.reasons.append("its row in meta/episodes is made from its data")
        elif not all(place.recorded for place in episode.places.values()):
            episode.status = REBUILT
    _compare_totals(plan, found)
    plan.tasks = _tasks(plan, found, given_tasks)
    _describe_leftovers(plan, found)
    return plan


def _faults(found: Found) -> list[str]:
    faults = []
    if found.info_why:
        faults.append(f"{INFO}: {found.info_why}")
    if found.stats is None and (found.runs or found.rows):
        faults.append(f"{STATS}: it is missing or cut")
    if found.rows_why and (found.runs or found.info.get("total_episodes")):
        faults.append(f"meta/episodes: {found.rows_why}")
    for file in found.data:
        if file.why:
            name = file.path.relative_to(found.root)
            lost = f"; {file.lost} bytes of it are no whole row group" if file.lost else ""
            faults.append(f"{name}: {file.why}{lost}")
    return faults


def _chosen_runs(found: Found, faults: list[str]) -> dict[int, Run]:
    """One run an episode: the one that meta/episodes names, else the one that was written last."""
    chosen: dict[int, Run] = {}
    for run in found.runs:
        row = found.rows.get(run.episode)
        if row is not None:
            place = (row.get("data/chunk_index"), row.get("data/file_index"))
            if place != found.data[run.file].chunk_file:
                continue
        chosen[run.episode] = run
    dropped = [run for run in found.runs if chosen.get(run.episode) is not run]
    for run in dropped:
        name = found.data[run.file].path.relative_to(found.root)
        faults.append(
            f"{name}: {run.length} rows of an episode {run.episode} that was recorded again are left out"
        )
    return chosen


def _judge_rows(episode: Episode, found: Found, counted: int) -> None:
    """Lose the episode if its numbers are not all there."""
    run, row = episode.run, episode.row
    length = row.get("length") if row else None
    episode.frames = run.length if run else int(length or 0)
    if run is None:
        who = "meta/episodes has it" if row else f"{INFO} counts {counted} episodes"
        episode.lose(f"{who}, but its rows are in no data file that can be read")
    elif run.fault:
        episode.lose(f"its rows are damaged: {run.fault}")
    elif length is not None and length != run.length:
        episode.frames = int(length)
        episode.lose(f"{run.length} of its {length} rows are there")


def _judge_order(episodes: list[Episode]) -> None:
    """Lose episodes whose rows stand in front of an earlier one's: LeRobot finds rows by their position."""
    last = (-1, -1)
    for episode in episodes:
        if episode.status != LOST:
            here = (episode.run.file, episode.run.start)
            if here < last:
                episode.lose("its rows stand in front of an earlier episode's")
            else:
                last = here


def _judge_frames(episodes: list[Episode], found: Found) -> None:
    """Lose the episodes whose frames are not all there, find those of the others."""
    lengths = {episode.index: episode.frames for episode in episodes if episode.frames}
    for key in found.video_keys:
        unknown_range = not _depth_is_known(found, key)
        places = locate(found, key, lengths)
        for episode in episodes:
            if episode.status == LOST:
                continue
            place = places.found.get(episode.index)
            if place is None:
                why = places.missing.get(episode.index, "its frames are in no video")
                episode.lose(f"{key}: {why}")
            elif unknown_range and place.pictures is None:
                episode.lose(
                    f"{key}: {INFO} does not say between which depths it was encoded (--info=FILE of a recording "
                    "with the same settings does)"
                )
            else:
                episode.places[key] = place
                if place.pictures is not None:
                    how = f", over LeRobot's depth range, since {INFO} states none" if unknown_range else ""
                    episode.reasons.append(f"{key}: encoded from its pictures{how}")
                elif place.video.chunk < 0:
                    episode.reasons.append(f"{key}: taken from {place.video.path.parent.name}/")


def _depth_is_known(found: Found, key: str) -> bool:
    info = found.info["features"][key].get("info") or {}
    return not info.get("is_depth_map") or "video.depth_max" in info


def _compare_totals(plan: Plan, found: Found) -> None:
    """Add the faults of what does not agree with the episodes that are kept."""
    kept = plan.kept
    frames = sum(episode.frames for episode in kept)
    said = (found.info.get("total_episodes"), found.info.get("total_frames"))
    if not found.info_why and said != (len(kept), frames):
        plan.faults.append(
            f"{INFO}: it counts {said[0]} episodes and {said[1]} frames, there are {len(kept)} and {frames}"
        )
    start = 0
    for episode in kept:
        row = episode.row or {}
        wrong = episode.run.first_index != start or episode.index != episode.new_index
        recorded = (row.get("dataset_from_index"), row.get("dataset_to_index"))
        if wrong or (episode.row and recorded != (start, start + episode.frames)):
            plan.faults.append(f"episode {episode.index}: its frames are numbered anew from {start} on")
        start += episode.frames
    rows = sum(run.length for run in found.runs)
    if kept and rows > frames and not plan.faults and not plan.lost:
        plan.faults.append(f"data: {rows - frames} rows belong to no episode")


def _tasks(plan: Plan, found: Found, given: list[str]) -> dict[int, str]:
    """The text of every task that occurs.

    Raises:
        UserError: One is lost and not given.
    """
    needed = sorted({task for episode in plan.kept for task in episode.run.tasks})
    tasks = dict(found.tasks or {})
    for episode in plan.kept:
        names = (episode.row or {}).get("tasks")
        if names and len(names) == 1 and len(episode.run.tasks) == 1:
            tasks.setdefault(episode.run.tasks[0], names[0])
    missing = [task for task in needed if task not in tasks]
    if missing or (needed and found.tasks is None):
        plan.faults.append(f"{TASKS}: {'it cannot be read' if found.tasks is None else 'tasks are missing'}")
    if len(missing) > len(given):
        raise UserError(
            f"the text of {len(missing)} task{'s' * (len(missing) > 1)} (task_index {missing}) is lost with {TASKS}; "
            "give it with --task='TEXT', once for each of them in this order."
        )
    tasks.update(zip(missing, given, strict=False))
    return tasks


def _describe_leftovers(plan: Plan, found: Found) -> None:
    used = {place.pictures for episode in plan.kept for place in episode.places.values() if place.pictures}
    indices = {episode.index for episode in plan.episodes}
    waiting: dict[int, int] = {}
    for (_, index), folder in found.pictures.items():
        if index not in indices and folder not in used:
            waiting[index] = max(waiting.get(index, 0), sum(1 for _ in folder.iterdir()))
    for index, count in sorted(waiting.items()):
        plan.notes.append(
            f"episode {index} was never saved: {count} pictures of it are in images/, its numbers were in memory only"
        )
    if found.leftovers:
        names = ", ".join(path.name for path in found.leftovers[:4])
        more = f" and {len(found.leftovers) - 4} more" if len(found.leftovers) > 4 else ""
        plan.notes.append(f"left over from the recording: {names}{more}")
