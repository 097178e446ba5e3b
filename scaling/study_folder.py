"""A study's folder: the name of everything in it, written here alone, and what is read of it.

    STUDY/study.yaml                 the configuration, defaults included
    STUDY/plan.json                  the runs that belong to the study as it is configured now
    STUDY/design.json                what a ladder that places its own runs decided, and why
    STUDY/data/<key>/                a tokenizer and its tokens (`TokenFolder`)
    STUDY/runs/<run id>/             the whole state of one run (`RunFolder`)
    STUDY/probes/<key>/, davis/<key>/, finetuned/, anticipated/<key>/    what the models learned
                                     (`ProbeFolder`)
    STUDY/jobs/<stamp>/              what submitit and Slurm wrote of jobs
    STUDY/*.csv, law.json, report.html               what was found

A folder is a study wherever it lies and whatever it is called: nothing in it needs its path.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling import results
from scaling.analysis.schema import Setting, words
from scaling.config.run import SCHEMA, RunConfig
from scaling.config.schedule import length, segments
from scaling.config.schema import StudyConfig
from scaling.config.study_file import load_study
from scaling.errors import UserError, note
from scaling.results import Row
from scaling.storage import files, outputs

if TYPE_CHECKING:
    import pandas as pd

STUDIES = Path("studies")  # where studies lie if nothing else is said
ENTRY: dict[str, Any] = {  # of plan.json, and of which kind
    "run_id": str, "role": str, "size": str, "log2_lr": (int, float), "steps": int,
    "macs": (int, float), "batch_tokens": int,
}  # fmt: skip
FOLDER_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # of a run, as a plan may name it
INDEX = "index.json"  # says what a folder of tokens, or of probes, holds; written last
ROWS = "rows.json"
RUN_ID = re.compile(r"[0-9a-f]{12}")  # as made of a configuration; a folder may have another name


def read_index(path: Path) -> dict[str, Any]:
    """What a folder of tokens, or of probes, holds. Raises UserError: damaged."""
    try:
        return files.read_json(path, dict)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); remove {path.parent} and run the same again"
        ) from None


class _File:
    """A file of a `RunFolder`; its path is made when it is asked for, of thousands of runs."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: RunFolder, kind: type[RunFolder]) -> Path:
        return folder.path / self.name


class RunFolder:
    """The directory of one run. Holds names alone; nothing needs to be there."""

    config_yaml = _File("config.yaml")
    lock = _File("lock")
    metrics = _File("metrics.jsonl")  # a line per window of steps, one per evaluation
    checkpoint = _File("checkpoint.pt")
    points_json = _File("points.json")  # every evaluation, whatever is asked for now
    rows_json = _File(ROWS)  # of the budgets that are asked for and are there
    goes_on = _File("goes_on")  # an empty file: more is asked for than the rows have
    log = _File("log.txt")  # what it prints
    error = _File("error.txt")  # why the last attempt gave up; gone when it starts again

    def __init__(self, path: Path) -> None:
        self.path = path

    def config(self) -> RunConfig:
        """What the run is. Raises UserError: config.yaml is none, or that of another run than the
        one that the folder is named after."""
        run = RunConfig.from_yaml(self.config_yaml)
        name = self.path.resolve().name
        if RUN_ID.fullmatch(name) and name not in (run.run_id, run.fixed_id):
            raise UserError(
                f"{self.config_yaml}: describes run {run.run_id}, not {name}, which its folder is "
                f"named after: it was changed, or is another run's. Put the file back, or remove "
                f"the folder and run the study again to train {name} anew"
            )
        return run

    def study(self) -> Study:
        """That a run of STUDY/runs/ID belongs to."""
        return Study(self.path.parents[1])

    def weights(self, steps: int) -> Path:
        """The weights after a budget of so many steps; a sharded run has its checkpoint alone."""
        return self.path / f"weights-{steps}.pt"

    def trunk(self, step: int) -> Path:
        """The state of the trunk at a step from which a cooldown branched."""
        return self.path / f"trunk-{step}.pt"

    def trunks(self) -> list[int]:
        """The steps whose state of the trunk is kept, increasing."""
        numbers = [path.stem.partition("-")[2] for path in files.whole(self.path, "trunk-*.pt")]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def positions_json(self, steps: int) -> Path:
        """The loss by token position after a budget of so many steps."""
        name = Path(results.POSITIONS)
        return self.path / f"{name.stem}-{steps}{name.suffix}"

    @property
    def finished(self) -> bool:
        """Whether all that is asked of the run is there."""
        return self.rows_json.is_file() and not self.goes_on.exists()

    def log_of(self, rank: int) -> Path:
        """What a rank prints, of a run on several."""
        return self.path / f"log.{rank}.txt" if rank else self.log

    def read(self) -> list[Row] | None:
        """The rows of the budgets that are asked for, or of those of them that are there while the
        run goes on to more; None before the first end. Raises UserError: damaged.
        """
        try:
            with open(f"{self.path}/{ROWS}") as file:  # of many thousand, without a Path each
                text = file.read()
            rows = files.parse_json(text, list)
            if not rows or not all(isinstance(row, dict) for row in rows):
                raise UserError("it holds no rows")
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise UserError(
                f"{self.rows_json}: damaged ({error}). Remove it and run the study again, which "
                f"makes it from what the run has kept"
            ) from None
        return results.loads(rows) if 'inf"' in text else rows


class TokenFolder:
    """A directory of tokens (`data.shards.TokenData` opens it). Shards are named by the index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = path / INDEX
        self.manifest = path / "manifest.csv"  # what became of every file
        self.samples = path / "samples.npz"  # clips before and after the tokenizer
        self.tokenizer = path / "tokenizer.safetensors"

    @classmethod
    def all_in(cls, folder: Path) -> list[TokenFolder]:
        """Those below a folder that are complete, by key."""
        return [cls(index.parent) for index in sorted(folder.glob(f"[!.]*/{INDEX}"))]

    def read_index(self) -> dict[str, Any]:
        """As it is; `data.shards.read_index` sees to it that it is whole and of this version."""
        return read_index(self.index)

    def beside(self) -> list[TokenFolder]:
        """This one and those of other tokenizers or data in the same folder, by key."""
        return self.all_in(self.path.parent)


class ProbeFolder:
    """A directory of what one kind of probe has of one set of data: its settings, codes, rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = path / INDEX
        self.tokens_npz = path / "tokens.npz"
        self.features_dir = path / "features"

    @classmethod
    def all_in(cls, folder: Path) -> list[ProbeFolder]:
        """Those below a folder that are complete, by key."""
        return [cls(index.parent) for index in sorted(folder.glob(f"*/{INDEX}"))]

    def read_index(self) -> dict[str, Any]:
        return read_index(self.index)


@dataclass(frozen=True)
class Plan:
    """plan.json. Each of `runs` has the keys ENTRY."""

    runs: tuple[dict[str, Any], ...] = ()
    later_macs: int = 0  # of runs that cannot be named yet: a ladder's before its rate is known
    schema: int = SCHEMA
    setting: str = ""  # of `train`, that the sweep chose for the ladder: `words` of it


class Study:
    """A study's folder, which need not be there yet (`open` sees to it that it is)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.yaml = folder / "study.yaml"
        self.lock = folder / outputs.LOCK  # of the one driver
        self.plan_json = folder / "plan.json"
        self.design_json = folder / "design.json"  # what a ladder that places its runs decided
        self.journal = folder / "sweep.journal"
        self.data_dir = folder / "data"
        self.runs_dir = folder / "runs"
        self.jobs_dir = folder / "jobs"
        self.encode_dir = folder / "encode"
        self.mlflow_db = folder / "mlflow.db"
        self.mlflow_sent_json = folder / "mlflow.sent.json"
        self.mlartifacts_dir = folder / "mlartifacts"
        self.probes_dir = folder / "probes"
        self.davis_dir = folder / "davis"
        self.finetuned_dir = folder / "finetuned"
        self.anticipated_dir = folder / "anticipated"
        self.generated_dir = folder / outputs.GENERATED
        self.rows_csv = folder / "rows.csv"
        self.law_json = folder / "law.json"
        self.report_html = folder / "report.html"
        self.paper_csv = folder / "paper_table.csv"
        self.positions_json = folder / results.POSITIONS  # of the best run
        self.variants_json = folder / "variants.json"  # name -> ids of its runs, in order of seeds
        self.probes_csv = folder / "probes.csv"
        self.davis_csv = folder / "davis.csv"
        self.finetune_csv = folder / "finetune.csv"
        self.anticipation_csv = folder / "anticipation.csv"
        self.variants_csv = folder / "variants.csv"
        # What is written, and written again, at the top.
        self.report_files = (self.law_json, self.report_html, self.paper_csv)
        self.own_files = (
            *self.report_files,
            self.rows_csv,
            self.variants_json,
            self.positions_json,
        )
        self.probe_files = (
            self.probes_csv,
            self.davis_csv,
            self.finetune_csv,
            self.anticipation_csv,
            self.variants_csv,
        )
        self.state_files = (
            self.plan_json,
            self.design_json,
            self.journal,
            self.mlflow_db,
            self.mlflow_sent_json,
        )

    def __str__(self) -> str:
        return str(self.folder)

    # ------------------------------------------------------------------------------- opening

    @classmethod
    def open(cls, folder: Path, say: Callable[[str], None] | None = None) -> Study:
        """The study in a folder; `say` (default: to stderr) is told of one of another version.

        Raises UserError where there is none.
        """
        study = cls(folder)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such study; see the folders in {folder.parent}/")
        if not study.is_there():
            raise UserError(
                f"{folder}: not a study's folder (it has no {study.yaml.name} and no "
                f"{study.runs_dir.name}/)"
            )
        with contextlib.suppress(UserError):  # a damaged plan is told of by who reads it
            if about := study.other_version():
                (say or note)(f"{about}. It is opened to be read")
        return study

    def is_there(self) -> bool:
        """Whether the folder looks like that of a study."""
        begun = (self.yaml, self.plan_json, self.runs_dir, self.data_dir, self.lock)
        return any(path.exists() for path in begun)

    def config(self, overrides: Sequence[str] = ()) -> StudyConfig:
        """The study's configuration. Raises UserError: no study.yaml, or a damaged one."""
        if not self.yaml.is_file():
            raise UserError(f"{self.folder}: not a study's folder (it has no {self.yaml.name})")
        return load_study(self.yaml, overrides)

    def says(self, config: StudyConfig) -> bool:
        """Whether study.yaml is there and says the same, in whatever words."""
        try:
            return self.yaml.is_file() and load_study(self.yaml) == config
        except UserError:
            return False

    def other_version(self) -> str:
        """In words, that another version wrote the folder; '' for this one's."""
        schema = self.plan().schema
        if schema == SCHEMA:
            return ""
        age = "a newer" if schema > SCHEMA else "an older"
        return (
            f"{self.folder}: written with schema {schema} of the run directory by {age} version; "
            f"this one writes {SCHEMA}"
        )

    def check_version(self) -> None:
        """Refuse to go on in a folder of another version, whose rows would not mix with new ones.

        Raises UserError with what can be done.
        """
        if not (about := self.other_version()):
            return
        if self.plan().schema > SCHEMA:
            raise UserError(f"{about}. Install the newer version to go on")
        raise UserError(
            f"{about}, and its numbers need not equal those. Nothing was changed. Give the study "
            f"another name (or --out) to train it anew, or continue it with the version that began "
            f"it; its {self.rows_csv.name} stays readable for `scaling fit`"
        )

    # ------------------------------------------------------------------------------- writing

    def claim(self, *paths: Path, inputs: Iterable[Path] = ()) -> None:
        """Raises UserError where files at the top of the folder are not the study's to replace."""
        outputs.claim(outputs.STUDY, *paths, inputs=inputs)

    def claim_to_run(self, config: StudyConfig, *more: Path) -> None:
        """The same of all that running the study writes, and of `more`.

        A study.yaml that says the same as `config` stays as it is.
        """
        paths = [*self.own_files, *more]
        if not self.says(config):
            paths.append(self.yaml)
        if not (self.lock.exists() or outputs.wrote(outputs.STUDY, self.folder)):
            paths += self.state_files  # nothing of a study is there yet
        self.claim(*paths)

    def write(self, path: Path, text: str) -> Path:
        """Write a file at the top of the folder where it changes; returns its path."""
        if not path.exists() or path.read_text() != text:
            outputs.write(outputs.STUDY, path, text)
        return path

    def remove(self, path: Path) -> None:
        outputs.remove(outputs.STUDY, path)

    # ------------------------------------------------------------------------------- the plan

    def plan(self) -> Plan:
        """plan.json; an empty plan before the first runs are planned. Raises UserError: damaged."""
        try:
            held = files.read_json(self.plan_json, dict)
            for entry in held["runs"]:
                _check(entry)
            plan = Plan(
                tuple(held["runs"]), held.get("later_macs", 0), held.get("schema", SCHEMA),
                held.get("setting", ""),
            )  # fmt: skip
            if not (isinstance(plan.later_macs, int | float) and isinstance(plan.schema, int)):
                raise UserError("later_macs or schema is no number")
            if not isinstance(plan.setting, str):
                raise UserError("setting is no text")
            return plan
        except FileNotFoundError:
            return Plan()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.plan_json}: damaged ({error}); remove it and run the study again"
            ) from None

    def write_plan(
        self,
        runs: list[RunConfig],
        macs: list[int],
        *,
        later_macs: int = 0,
        setting: Setting = (),
    ) -> None:
        """The runs that belong to the study as it is configured now, and their training MACs."""
        entries = [
            {
                "run_id": r.run_id,
                "role": r.role,
                "size": r.model.name,
                "log2_lr": math.log2(r.lr),
                "steps": length(segments(r)),
                "macs": m,
                "batch_tokens": r.batch * r.model.context,
            }
            for r, m in zip(runs, macs, strict=True)
        ]
        held: dict[str, Any] = {"schema": SCHEMA, "later_macs": later_macs}
        if setting:
            held["setting"] = words(setting)
        text = json.dumps(held | {"runs": entries}, indent=1)
        if not self.plan_json.exists() or self.plan_json.read_text() != text:
            files.write(self.plan_json, text)

    # ------------------------------------------------------------------------------- reading

    def run(self, run_id: str) -> RunFolder:
        """The directory of a run, which need not be there yet."""
        return RunFolder(self.runs_dir / run_id)

    def runs(self) -> list[RunFolder]:
        """The runs with rows that belong to the study as it is configured now, by run id.

        A run of an earlier configuration stays on disk, for the day the configuration goes back,
        and is in no table meanwhile. A folder without plan.json counts whole.
        """
        runs = self.run_folders()
        if self.plan_json.exists():
            planned = {entry["run_id"] for entry in self.plan().runs}
            runs = [run for run in runs if run.path.name in planned]
        return [run for run in runs if os.path.exists(f"{run.path}/{ROWS}")]

    def run_folders(self) -> list[RunFolder]:
        """Of all runs that were ever begun, by run id."""
        try:
            with os.scandir(self.runs_dir) as inside:
                names = [e.name for e in inside if not e.name.startswith(".") and e.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [self.run(name) for name in sorted(names)]

    def complete(self) -> bool:
        """Whether every run planned so far is finished: then another look needs no cluster."""
        planned = self.plan().runs
        return bool(planned) and all(self.run(r["run_id"]).finished for r in planned)

    def rows(self) -> pd.DataFrame:
        """The rows of the finished runs (`results.COLUMNS`).

        Raises UserError: there are none, or two folders hold the rows of one run.
        """
        if not self.runs_dir.is_dir():
            raise UserError(
                f"{self.folder}: not a study's folder (it has no {self.runs_dir.name}/)"
            )
        table = results.frame(self._each_row())
        if table.empty:
            raise UserError(
                f"{self.folder}: no run of this study has finished yet; see `scaling status`"
            )
        return table

    def _each_row(self) -> Iterator[Row]:
        holds: dict[str, Path] = {}
        for run in self.runs():
            rows = run.read() or []
            name = run.path.name
            for run_id in {str(row.get("run_id")) for row in rows}:
                if run_id != name and RUN_ID.fullmatch(name) and RUN_ID.fullmatch(run_id):
                    raise UserError(
                        f"{run.path} holds rows of run {run_id}: they are another's, or its folder "
                        f"was renamed. Give each run its own, or move this folder away"
                    )
                if (other := holds.setdefault(run_id, run.path)) != run.path:
                    raise UserError(
                        f"{run.path} and {other} both hold rows of run {run_id}, which would count "
                        f"twice: one is a copy, or was trained by the other's "
                        f"{run.config_yaml.name}. Move the one that is not named {run_id} away"
                    )
            yield from rows

    def positions(self) -> dict[str, Any] | None:
        """Loss by token position of the ladder's best run: size, tokens_per_frame, loss (nats);
        None where there is none. Raises UserError: damaged."""
        try:
            return files.read_json(self.positions_json, dict)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.positions_json}: damaged ({error}); remove it and run the study again"
            ) from None

    def continued(self) -> list[Path]:
        """The tables of losses of the clips that the models continued, by name."""
        return files.whole(self.generated_dir, "*.csv")

    def tokens(self) -> list[TokenFolder]:
        """Every directory of tokens that is complete, by key."""
        return TokenFolder.all_in(self.data_dir)

    def tokens_of(self, data_key: str) -> TokenFolder:
        """The directory of these tokens, which need not be there."""
        return TokenFolder(self.data_dir / data_key)


def _check(entry: dict[str, Any]) -> None:
    """Raises UserError: a run of a plan that is not described, or by what is no such thing."""
    if not entry.keys() >= ENTRY.keys():
        raise UserError("a run in it is not described")
    wrong = [name for name, kind in ENTRY.items() if not isinstance(entry[name], kind)]
    if wrong or entry["steps"] < 1:
        raise UserError(f"a run in it has another kind of {(wrong or ['steps'])[0]}")
    if not FOLDER_NAME.fullmatch(entry["run_id"]):
        raise UserError(f"{entry['run_id'][:40]!r} in it is no run's id")


def choose(
    given: Path, out: Path | None = None, overrides: Sequence[str] = ()
) -> tuple[StudyConfig, Study]:
    """What a command line means by a study, and the folder that it lives in.

    Args:
        given: a study's folder, which is meant wherever it lies; a YAML file, or the bare name of
            one that ships, whose study lives in `out`/NAME.
        out: default, STUDIES.
        overrides: `section.key=value`, as `--set` gives them.
    Raises:
        UserError: no such file or study; `out` beside a folder; mistakes in the YAML.
    """
    if given.is_dir():
        if out is not None:
            raise UserError(
                f"--out {out}: {given} is a study's folder, and is continued where it lies; leave "
                f"--out out, or give a YAML file"
            )
        study = Study.open(given)
        return study.config(overrides), study
    config = load_study(given, overrides)
    return config, Study((out or STUDIES) / config.study)
