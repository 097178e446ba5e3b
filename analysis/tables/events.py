"""TensorBoard's event folders as a history: a row for each run and step, a column for each scalar.

TensorBoard reads them itself; it is no dependency, and named where it is missing. What is here
finds out which folders are one run: writers put a run's splits, curves of one picture and
hyper-parameters into folders of their own.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pandas as pd

from scaling.analysis.tables.columns import TESTING, TRAINING, VALIDATION, listed, loss_kind
from scaling.analysis.tables.units import parse_name
from scaling.errors import UserError

FILES = "*tfevents*"
SPLITS = VALIDATION | TRAINING | TESTING  # Keras: logs/RUN/train, logs/RUN/validation
OTHER_STEPS = re.compile(r" vs\.? (samples|tokens|time|steps)$")  # Megatron: not over iterations


def is_folder(path: Path) -> bool:
    """Whether there are event files in a folder or below it."""
    return path.is_dir() and next(path.rglob(FILES), None) is not None


def read_events(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Scalars and hyper-parameters of every run below a folder, and notes.

    Columns run (its folder), step, the scalars by their tags, and hparams/NAME. A scalar that is
    written once and is no loss holds for the whole run. Raises UserError without TensorBoard,
    without scalars, or for files that it does not read.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "TensorBoard's logs are read by tensorboard, which is not installed: pip install "
            "tensorboard; or download the scalars as CSV from its page"
        )
    places = sorted({file.parent for file in folder.rglob(FILES)})
    scalars: dict[Path, dict[str, pd.Series]] = {}
    settings: dict[Path, dict[str, Any]] = {}
    aside: set[str] = set()
    for place in places:
        found, held = _load(place)
        run, before = _whose(place, set(places), set(found))
        aside |= {tag for tag in found if OTHER_STEPS.search(tag)}
        scalars.setdefault(run, {}).update(
            {before + tag: values for tag, values in found.items() if tag not in aside}
        )
        settings.setdefault(run, {}).update({f"hparams/{k}": v for k, v in held.items()})
    parts = []
    for run, tags in scalars.items():
        if not tags:
            continue
        part = pd.DataFrame(tags).rename_axis("step").sort_index().reset_index()
        for tag in tags:
            if part[tag].nunique() == 1 and loss_kind(parse_name(tag)) is None:
                part[tag] = part[tag].dropna().iloc[0]
        name = run.name if run == folder else str(run.relative_to(folder))
        parts.append(part.assign(run=name, **settings[run]))
    if not parts:
        raise UserError(f"TensorBoard's logs of {len(places)} folders, without any scalars")
    if len(parts) == 1:
        raise UserError(
            f"TensorBoard's log of one run, {parts[0]['run'].iloc[0]!r}: a law needs several; give "
            "the folder that holds a folder for each"
        )
    notes = [f"layout: TensorBoard's logs of {len(parts)} runs, a folder each"]
    if aside:
        notes.append(f"scalars that do not go by step are left out: {listed(sorted(aside), 4)}")
    return pd.concat(parts, ignore_index=True), notes


def _whose(place: Path, places: set[Path], tags: set[str]) -> tuple[Path, str]:
    """The run that a folder belongs to, and what stands before its tags there."""
    above = place.parent
    beside = above in places or any(above / other in places for other in SPLITS - {place.name})
    if place.name in SPLITS and beside:
        return above, f"{place.name}/"
    if above in places:
        if re.fullmatch(r"\d{9,}(\.\d+)?", place.name):  # PyTorch's add_hparams: the time
            return above, ""
        main = {tag.replace("/", "_") for tag in tags}
        if len(main) == 1 and place.name.startswith(f"{main.pop()}_"):  # its add_scalars
            return above, f"{place.name}/"
    return place, ""


def _load(place: Path) -> tuple[dict[str, pd.Series], dict[str, Any]]:
    """The scalars of one folder's files by tag, each over its steps, and its hyper-parameters."""
    from tensorboard.backend.event_processing import event_accumulator as reader
    from tensorboard.util import tensor_util

    everything = {reader.SCALARS: 0, reader.TENSORS: 0}
    nothing = {kind: 1 for kind in reader.DEFAULT_SIZE_GUIDANCE if kind not in everything}
    log = reader.EventAccumulator(str(place), size_guidance=everything | nothing)
    try:
        log.Reload()
    except Exception as error:  # of protobuf, of many types
        raise UserError(f"{place}: event files that TensorBoard does not read: {error}") from None
    points: dict[str, list[tuple[int, float]]] = {}
    for tag in log.Tags()[reader.SCALARS]:
        points[tag] = [(one.step, one.value) for one in log.Scalars(tag)]
    for tag in log.Tags()[reader.TENSORS]:  # TensorFlow 2 writes its scalars as tensors
        if log.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            points[tag] = [
                (one.step, float(tensor_util.make_ndarray(one.tensor_proto)))
                for one in log.Tensors(tag)
            ]
    return {tag: pd.Series(dict(held), dtype=float) for tag, held in points.items()}, _hparams(log)


def _hparams(log: Any) -> dict[str, Any]:
    """The values that the run was started with, where its writer noted them."""
    from tensorboard.plugins.hparams import metadata

    try:
        noted = log.PluginTagToContent(metadata.PLUGIN_NAME)[metadata.SESSION_START_INFO_TAG]
    except KeyError:
        return {}
    held = metadata.parse_session_start_info_plugin_data(noted).hparams
    kinds = {name: value.WhichOneof("kind") for name, value in held.items()}
    return {name: getattr(held[name], kind) for name, kind in kinds.items() if kind}
