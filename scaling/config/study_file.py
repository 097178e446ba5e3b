"""A study's YAML file, read strictly: every mistake at once, each with its line and a suggestion.

Values come from the schema's defaults (`scaling.config.schema`), then the file, then `--set
section.key=value`. Unknown keys, wrong types and broken rules are collected and reported together.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from scaling.config import yaml_file
from scaling.config.ladder import LrConfig
from scaling.config.schema import ProbeConfig, StudyConfig, varied
from scaling.config.section import Section
from scaling.errors import UserError, did_you_mean
from scaling.models.family import named, shape

SectionT = TypeVar("SectionT", bound=Section)
SWEEPS = (Path(__file__).parents[1] / "sweeps").resolve()  # in a checkout and in a wheel


def describe(config: StudyConfig) -> str:
    """The whole configuration, defaults included, as YAML that `load_study` reads."""
    return yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False)


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study's YAML. Raises UserError with every mistake, each with its line.

    Args:
        path: the YAML file. Relative `path:` entries in it are relative to its folder.
        overrides: `section.key=value` strings; sources are named: `data.sources.NAME.path=DIR`.
    """
    path = _shipped(path)
    raw, lines = yaml_file.read(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a study is a mapping of sections (study, data, ladder, ...)")
    _resolve_paths(raw, path.resolve().parent)
    for variant in _variants_of(raw):
        _resolve_paths(variant, path.resolve().parent)
    for override in overrides:
        _apply(raw, override)
    config, found = _validated(raw)
    for i, variant in enumerate(_variants_of(raw)):
        one, wrong = _validated(varied(raw, variant))
        told = {e["loc"] for e in found}
        found += [
            e | {"loc": at}
            for e in wrong
            if not {e["loc"], at := ("variants", i, *e["loc"])} & told
        ]
        ladder = one.ladder if one else None
        if ladder and (ladder.macs or len(ladder.sizes) * len(ladder.budgets_macs) > 1):
            message = (
                "a variant is one size at one budget; for a law of each choice make each a study "
                "and use `scaling compare`"
            )
            loc = ("variants", i, "ladder")
            found.append({"type": "rule", "loc": loc, "msg": message})
    if config and not config.variants and (config.finetune or config.probe != ProbeConfig()):
        section = "finetune" if config.finetune else "probe"
        message = "says how variants are read, and there are none; add `variants:`"
        found.append({"type": "rule", "loc": (section,), "msg": message})
    found += [] if config is None else _wrong_settings(config)
    if config is None or found:
        raise UserError("\n".join(_explain(e, path, lines) for e in found))
    return config


def _wrong_settings(config: StudyConfig) -> Iterator[dict[str, Any]]:
    """What is wrong with numbers that are swept together with the rate, beside other sections."""
    ladder, swept = config.ladder, dict[tuple[Any, ...], LrConfig]()
    if config.lr:
        swept["lr",] = config.lr
    swept |= {("transfer", i): one for i, one in enumerate(config.transfer)}
    for where, asked in swept.items():
        given, told = asked.over.given, []
        sequences = asked.steps * config.train.batch
        batches = [b for b in given.get("batch", ()) if isinstance(b, int)]
        if no := [b for b in batches if sequences % b]:
            told.append(
                f"{no} do not divide the {sequences:,} sequences that every run sees, steps "
                f"{asked.steps} x train.batch {config.train.batch}"
            )
        micro = config.train.micro_batch
        if micro and (no := [b for b in batches if b % micro]):
            told.append(f"{no}: train.micro_batch {micro} does not divide them")
        if batches and where == ("lr",) and ladder and ladder.batch:
            told.append("the batch is swept, and ladder.batch gives sizes their own; leave one out")
        yield from ({"type": "rule", "loc": (*where, "over", "batch"), "msg": m} for m in told)
        told = []
        if given and where != ("lr",):
            told.append(
                "sweeps that are compared have `train`'s own setting; only the ladder's, `lr:`, "
                "finds one"
            )
        if given and where == ("lr",) and ladder and ladder.log2_lr is not None:
            told.append("ladder.log2_lr skips the sweep that this asks for; leave one out")
        if given and where == ("lr",) and ladder:
            shapes = sorted({shape(named(name)) or "toto" for name in ladder.sizes})
            if len(shapes) > 1:
                told.append(
                    f"the ladder has sizes of several shapes ({', '.join(shapes)}), and each would "
                    f"have a setting of its own; make a study of each"
                )
        yield from ({"type": "rule", "loc": (*where, "over"), "msg": m} for m in told)


def checked(section: type[SectionT], **values: Any) -> SectionT:
    """A section made from a command's options. Raises UserError with every mistake."""
    try:
        return section(**values)
    except ValidationError as error:
        found = [_explain(e, Path(), {}).removeprefix(".:1: ") for e in error.errors()]
        raise UserError("\n".join(line.removeprefix("study: ") for line in found)) from None


def _variants_of(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """The variants as they were written, where they can be looked at."""
    listed = raw.get("variants")
    return [v if isinstance(v, dict) else {} for v in listed] if isinstance(listed, list) else []


def _validated(raw: dict[str, Any]) -> tuple[StudyConfig | None, list[Any]]:
    """The study, or every mistake."""
    try:
        return StudyConfig.model_validate(raw), []
    except ValidationError as error:
        found = error.errors()
        inner = [e["loc"] for e in found]
        return (
            None,
            [
                e
                for e in found  # a list whose items are all wrong is not also "too short"
                if not (
                    e["type"] == "too_short"
                    and any(x[:-1][: len(e["loc"])] == e["loc"] for x in inner)
                )
            ],
        )


def _shipped(path: Path) -> Path:
    """The path; for a bare name that is no file here, the study of that name that ships."""
    if path.exists() or path.parent != Path():
        return path
    sweeps = {p.stem: p for p in sorted(SWEEPS.glob("*.yaml"))}
    if path.name in sweeps:
        return sweeps[path.name]
    hint = did_you_mean(path.stem, sweeps) or f"; those that ship: {', '.join(sweeps)}"
    raise UserError(f"{path}: no such file, and no study of that name ships{hint}")


def _resolve_paths(raw: dict[str, Any], folder: Path) -> None:
    data = raw.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    for source in sources if isinstance(sources, list) else []:
        if isinstance(source, dict) and isinstance(source.get("path"), str):
            source["path"] = str(folder / Path(source["path"]).expanduser())
    tokenizer = raw.get("tokenizer")
    if isinstance(tokenizer, dict) and isinstance(tokenizer.get("weights"), str):
        tokenizer["weights"] = str(folder / Path(tokenizer["weights"]).expanduser())


def _apply(raw: dict[str, Any], override: str) -> None:
    key, sep, text = override.partition("=")
    override = override if len(override) <= 120 else f"{override[:117]}..."
    if not sep:
        raise UserError(f"--set {override}: write it as section.key=value")
    try:
        value, _ = yaml_file.parse(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not valid YAML ({error})") from None
    *parents, last = key.split(".")
    target: Any = raw
    for part in parents:
        if isinstance(target, list):
            named = [s for s in target if isinstance(s, dict) and s.get("name") == part]
            if not named:
                known = [s.get("name") for s in target if isinstance(s, dict)]
                raise UserError(
                    f"--set {override}: no item named '{part}'{did_you_mean(part, known)}; "
                    f"there are: {', '.join(map(str, known))}"
                )
            target = named[0]
        elif isinstance(target, dict):
            target = target.setdefault(part, {})
        else:
            raise UserError(f"--set {override}: '{part}' is not inside a section")
    if not isinstance(target, dict):
        raise UserError(f"--set {override}: '{key}' does not name one value")
    if last in ("path", "weights") and isinstance(value, str):
        value = str(Path(value).expanduser().resolve())
    target[last] = value


def _explain(error: Any, path: Path, lines: dict[tuple[Any, ...], int]) -> str:
    """One line for one mistake: where, value, rule, remedy."""
    loc = tuple(error["loc"])
    known_loc = loc
    while known_loc and known_loc not in lines:
        known_loc = known_loc[:-1]
    where = f"{path}:{lines.get(known_loc, 1)}"
    name = ".".join(str(p) for p in loc if p != "[key]") or "study"
    kind, message = error["type"], error["msg"]
    if kind == "extra_forbidden":
        # The sections of a variant are the study's, which its own schema does not look into.
        known = _fields_at(loc[2:-1] if loc[0] == "variants" and len(loc) > 3 else loc[:-1])
        hint = did_you_mean(str(loc[-1]), known) or f"; known here: {', '.join(known)}"
        return f"{where}: {name}: unknown key{hint}"
    if kind == "rule":
        return f"{where}: {name}: {message}"
    if kind == "missing":
        return f"{where}: {name}: missing; add it"
    if kind == "value_error":
        return f"{where}: {name}: {error['ctx']['error']!s}"
    given = reprlib.repr(error["input"])
    hint = ""
    if isinstance(error["input"], bool) and kind != "bool_type":
        hint = "; YAML reads yes, no, on, off as truth values unless they are in quotes"
    if kind == "literal_error":
        known = re.findall(r"'([^']+)'", error["ctx"]["expected"])
        hint = hint or did_you_mean(given.strip("'"), known)
        return f"{where}: {name}: {given} is not one of {error['ctx']['expected']}{hint}"
    return f"{where}: {name}: {given}: {message[0].lower()}{message[1:]}{hint}"


def _fields_at(loc: tuple[Any, ...]) -> list[str]:
    """The keys that the schema allows at a location."""
    model: type[BaseModel] = StudyConfig
    for part in loc:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(str(part))
        if field is None:
            return []
        found = _model_in(field.annotation)
        if found is None:
            return []
        model = found
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (found := _model_in(argument)) is not None:
            return found
    return None
