"""Reads a Rerun recording back."""

from pathlib import Path


def chunks(path: Path, entity: str) -> list:
    """Every chunk of an entity, as Arrow record batches, in the order of the file."""
    from rerun.experimental import RrdReader

    stream = RrdReader(str(path)).stream()
    return [chunk.to_record_batch() for chunk in stream if str(chunk.entity_path) == f"/{entity}"]


def entities(path: Path) -> set[str]:
    from rerun.experimental import RrdReader

    return {str(chunk.entity_path).removeprefix("/") for chunk in RrdReader(str(path)).stream()}


def values(path: Path, entity: str, component: str) -> list:
    """Every value of a component that was logged, in the order of the file."""
    found = []
    for batch in chunks(path, entity):
        if component in batch.schema.names:
            found += [value for value in batch.column(component).to_pylist() if value is not None]
    return found


def with_frames(path: Path, entity: str, component: str) -> dict[int, list]:
    """The same by the timeline `frame`."""
    found = {}
    for batch in chunks(path, entity):
        if {component, "frame"} <= set(batch.schema.names):
            frames = batch.column("frame").to_pylist()
            found |= dict(zip(frames, batch.column(component).to_pylist(), strict=True))
    return found
