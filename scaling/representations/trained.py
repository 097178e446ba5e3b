"""The models of a study's finished runs: trained, or as they were before training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scaling import checkpoint
from scaling.config.run import RunConfig
from scaling.data.shards import read_index
from scaling.errors import UserError, did_you_mean
from scaling.models.decoder import Decoder
from scaling.models.parametrization import build, optimizer
from scaling.results import Row
from scaling.study_folder import RunFolder, Study, TokenFolder

WEIGHTS = ("trained", "random")


@dataclass(frozen=True)
class TrainedRun:
    """A decayed point of a finished run whose weights are held."""

    folder: Path
    run: RunConfig
    row: Row  # what the weights cost and scored

    @property
    def last(self) -> bool:
        """Whether it is the run's last decayed point."""
        return bool(self.row["steps"] == self.run.budgets_steps[-1])

    def label(self, weights: str) -> str:
        """A name for files: the random weights of a run serve all its budgets."""
        steps = self.row["steps"]
        return f"{self.run_id}-{weights if weights == 'random' else f'{weights}{steps}'}"

    @property
    def run_id(self) -> str:
        return self.folder.name

    def named(self, weights: str) -> str:
        """For people: `a691cfdcd01f t64 of 3.2e+12 MACs`, or `... of random weights`."""
        spent = "random weights" if weights == "random" else f"{self.row['macs_total']:.2g} MACs"
        return f"{self.run_id} {self.row['size']} of {spent}"

    def model(self, weights: str) -> Decoder:
        """The trained model, or the same one before its first step ("random"), on the CPU.

        Raises UserError when no checkpoint verifies.
        """
        config = self.run.model
        # A model of patches was not trained on the last one, which has no end token to predict; one
        # more position lets it be read.
        longer = config.context + (config.patch_targets > 0)
        model = build(replace(config, context=longer), seed=self.run.seed)
        if weights == "random":
            return model.eval()
        there = RunFolder(self.folder)
        path = there.weights(self.row["steps"])
        if not path.exists():  # sharded, or of a version before runs grew
            path = there.checkpoint
        state, notes = checkpoint.load(path)
        if path == there.checkpoint and state and state["step"] != self.row["steps"]:
            raise UserError(
                f"{path}: holds the weights after {state['step']} steps, not after "
                f"{self.row['steps']}: a sharded run keeps those that it trained last"
            )
        if state is None:
            why = "; ".join(["no checkpoint that verifies", *notes])
            raise UserError(
                f"{self.folder}: {why}. Remove the run's folder and run the study again to train it"
            )
        of, steps = state.get("run_id", self.run_id), state.get("steps", self.row["steps"])
        if of not in (self.run.run_id, self.run.fixed_id) or steps != self.row["steps"]:
            raise UserError(
                f"{path}: the weights of run {of} after {steps} steps, not of {self.run_id} after "
                f"{self.row['steps']}: the file is another's. Put its own back, or remove the "
                f"run's folder and run the study again to train it"
            )
        if shards := state.get("shards"):
            from scaling.models import parallel

            optim = optimizer(model, lr=self.run.lr, weight_decay=self.run.weight_decay)
            parallel.load(self.folder / shards["folder"], model, optim)
        else:
            try:
                model.load_state_dict(state["model"])
            except RuntimeError as error:  # torch: a line for each name or shape that is wrong
                wrong = str(error).splitlines()[-1].strip()
                raise UserError(
                    f"{path}: the weights are not those of this run's model "
                    f"({wrong}). Remove the run's folder and run the study again to train it"
                ) from None
        return model.eval()


def trained_runs(
    study: Study, names: list[str] | None = None, role: str = "ladder"
) -> list[TrainedRun]:
    """The decayed points of the finished runs of a role, or of those named, cheapest first.

    Those whose weights are held: every budget of runs that were not sharded, of others the last.

    Raises UserError: no study, no finished run, an unknown or unfinished or diverged run that was
    named.
    """
    found: dict[str, list[TrainedRun]] = {}
    for there in study.runs():
        folder, run = there.path, there.config()
        for row in there.read() or []:
            if not row["decayed"] or row["status"] != "finished":
                continue
            if row["steps"] not in run.budgets_steps:
                raise UserError(
                    f"{folder}: has a decayed row of {row['steps']} steps, and its "
                    f"{there.config_yaml.name} none that ends there: one of the two was changed; "
                    "remove the folder and run the study again"
                )
            point = TrainedRun(folder, run, row)
            if there.weights(row["steps"]).exists() or (point.last and there.checkpoint.exists()):
                found.setdefault(folder.name, []).append(point)
    for name in names or ():
        if name not in found:
            hint = did_you_mean(name, found) or f"; there are {', '.join(found) or 'none'}"
            raise UserError(f"{study}: no finished run '{name}'{hint}")
    points = [point for held in found.values() for point in held]
    chosen = [t for t in points if (t.run_id in names if names else t.run.role == role)]
    if not chosen:
        raise UserError(f"{study}: no run of the {role} has finished yet; see `scaling status`")
    return sorted(chosen, key=lambda t: (t.row["macs_total"], t.row["params"], t.run_id))


def run_in(folder: Path) -> TrainedRun:
    """The last point of the finished run of a run directory, studies/NAME/runs/ID."""
    there = RunFolder(folder.resolve())
    if not there.config_yaml.is_file():
        raise UserError(
            f"{folder}: not a run's folder (no {there.config_yaml.name}); want STUDY/runs/ID"
        )
    return trained_runs(there.study(), [there.path.name])[-1]


def data_dir_of(study: Study, run: RunConfig) -> Path:
    """The token directory that a run was trained on.

    Raises UserError when the study does not hold it: the run's codes have no meaning then.
    """
    held = study.tokens_of(run.data_key).path
    for path in (held, Path(run.data_dir)):
        if TokenFolder(path).index.is_file():
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
        f"{held} is not there: the tokenizer of this checkpoint is unknown. "
        f"Make its tokens again with `scaling encode`"
    )


def open_tokenizer(data_dir: Path) -> tuple[Any, dict[str, Any]]:
    """The tokenizer of a token directory, with `encode` and `decode`, and the directory's index.

    Raises UserError when the file is not the one that the index names.
    """
    import hashlib

    from safetensors import safe_open

    from scaling.models.tokenizers.codebook import Codebook

    index = read_index(data_dir)
    if "file" not in index["tokenizer"]:
        raise UserError(
            f"{data_dir}: its tokens were made elsewhere (tokenizer.kind given), so that pictures "
            "and clips cannot be made into tokens here"
        )
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
    from scaling.models.tokenizers.weights import load

    return load(path), index


def check_layers(trained: TrainedRun, layers: list[int] | None) -> None:
    """Raises UserError for a layer that the run's model does not have."""
    depth = trained.run.model.layers
    wrong = [layer for layer in layers or () if not 0 <= layer <= depth]
    if wrong:
        raise UserError(
            f"layer {', '.join(map(str, wrong))} of run {trained.run_id} "
            f"({trained.run.model.name}): its layers are 0 (the embedding) to {depth}"
        )
