"""The models of a study's finished runs: trained, or as they were before training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.decoder import Decoder
from models.parametrization import build, optimizer
from scaling import checkpoint
from scaling.config import RunConfig, did_you_mean
from scaling.errors import UserError
from scaling.results import Row, finished_runs, read_run
from scaling.shards import read_index

WEIGHTS = ("trained", "random")


@dataclass(frozen=True)
class TrainedRun:
    """A finished run whose checkpoint ends a decayed budget."""

    folder: Path
    run: RunConfig
    row: Row  # the last decayed one: what the checkpoint's weights cost and scored

    @property
    def run_id(self) -> str:
        return self.folder.name

    def model(self, weights: str) -> Decoder:
        """The trained model, or the same one before its first step ("random"), on the CPU.

        Raises UserError when no checkpoint verifies.
        """
        model = build(self.run.model, seed=self.run.seed)
        if weights == "random":
            return model.eval()
        state, notes = checkpoint.load(self.folder / "checkpoint.pt")
        if state is None:
            why = "; ".join(["no checkpoint that verifies", *notes])
            raise UserError(
                f"{self.folder}: {why}. Remove the run's folder and run the study again to train it"
            )
        if shards := state.get("shards"):
            from models import parallel

            optim = optimizer(model, lr=self.run.lr, weight_decay=self.run.weight_decay)
            parallel.load(self.folder / shards["folder"], model, optim)
        else:
            model.load_state_dict(state["model"])
        return model.eval()


def trained_runs(
    study: Path, names: list[str] | None = None, role: str = "ladder"
) -> list[TrainedRun]:
    """The study's finished runs of a role, or those named, smallest compute first.

    Raises UserError: no study, no finished run, an unknown or unfinished or diverged run that was
    named.
    """
    if not (study / "runs").is_dir():
        raise UserError(f"{study}: not a study directory (it has no runs/ folder)")
    found = {}
    for folder in finished_runs(study):
        rows = [r for r in read_run(folder) or [] if r["decayed"] and r["status"] == "finished"]
        if rows:
            run = RunConfig.from_yaml(folder / "config.yaml")
            found[folder.name] = TrainedRun(folder, run, max(rows, key=lambda r: r["macs_total"]))
    for name in names or ():
        if name not in found:
            hint = did_you_mean(name, found) or f"; there are {', '.join(found) or 'none'}"
            raise UserError(f"{study}: no finished run '{name}'{hint}")
    chosen = [t for t in found.values() if (t.run_id in names if names else t.run.role == role)]
    if not chosen:
        raise UserError(f"{study}: no run of the {role} has finished yet; see `scaling status`")
    return sorted(chosen, key=lambda t: (t.row["macs_total"], t.row["params"], t.run_id))


def run_in(folder: Path) -> TrainedRun:
    """The finished run of a run directory, studies/NAME/runs/ID."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: not a run's folder (no config.yaml); want STUDY/runs/ID")
    return trained_runs(folder.resolve().parents[1], [folder.resolve().name])[0]


def data_dir_of(study: Path, run: RunConfig) -> Path:
    """The token directory that a run was trained on.

    Raises UserError when the study does not hold it: the run's codes have no meaning then.
    """
    for path in (study / "data" / run.data_key, Path(run.data_dir)):
        if (path / "index.json").is_file():
            index = read_index(path)
            if index["key"] == run.data_key and index["vocab"] == run.model.vocab:
                return path
            raise UserError(
                f"{path} holds tokens {index['key']} of a vocabulary of {index['vocab']} "
                f"({index['tokenizer']['label']}), the checkpoint was trained on {run.data_key} "
                f"with {run.model.vocab}: codes of another tokenizer mean nothing to it. Give the "
                f"study that the checkpoint belongs to"
            )
    raise UserError(
        f"{study}/data/{run.data_key} is not there: the tokenizer of this checkpoint is unknown. "
        f"Make its tokens again with `scaling encode`"
    )


def open_tokenizer(data_dir: Path) -> tuple[Any, dict[str, Any]]:
    """The tokenizer of a token directory, with `encode` and `decode`, and the directory's index.

    Raises UserError when the file is not the one that the index names.
    """
    import hashlib

    from safetensors import safe_open

    from models.tokenizers.codebook import Codebook

    index = read_index(data_dir)
    path = data_dir / index["tokenizer"]["file"]
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); encode the study again"
        ) from None
    if digest != index["tokenizer"]["sha256"]:
        raise UserError(
            f"{path} is not the tokenizer of {data_dir} (its sha256 differs); encode the study "
            "again"
        )
    with safe_open(path, framework="numpy") as file:
        if set(file.keys()) == {"centroids"}:
            return Codebook.load(path), index
    from models.tokenizers.weights import load

    return load(path), index
