"""A small simulated study: rows with every column of the schema and a known law."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from scaling import results
from scaling.analysis.questions.frontier import StudyLaw, fit_frontier

WIDTHS = (16, 32, 64, 128)
SIZES = ((16, 2), (24, 2), (32, 3), (48, 3), (64, 4))
BUDGETS_MACS = (1e11, 3e11, 1e12, 3e12, 1e13)
CONTEXT = 257
BEST_LOG2_LR = -6


def _row(
    run_id: str, role: str, d: int, layers: int, log2_lr: int, **outcome: object
) -> dict[str, Any]:
    matmul = 12 * layers * d * d
    head = 516 * d
    row: dict[str, Any] = dict.fromkeys(results.ALWAYS, "")
    numbers = [c for c in results.ALWAYS if results.COLUMNS[c] in ("int", "float")]
    row |= dict.fromkeys(numbers, 0)
    row |= {
        "run_id": run_id,
        "study": "simulated",
        "role": role,
        "git_sha": "0123456789abcdef",
        "seed": 0,
        "schema": 1,
        "size": f"d{d}",
        "family": "toto",
        "parametrization": "mup",
        "d": d,
        "layers": layers,
        "heads": 4,
        "d_ff": 8 * d // 3,
        "vocab": 516,
        "context": CONTEXT,
        "params": matmul + 2 * head,
        "params_non_embedding": matmul,
        "params_matmul_head": matmul + head,
        "tokenizer": "codebook 4px 512",
        "data_key": "abc",
        "data_mix": json.dumps({"leaves": 1.0}),
        "lr": 2.0**log2_lr,
        "log2_lr": float(log2_lr),
        "schedule": "wsd",
        "batch_tokens": 8 * CONTEXT,
        "precision": "fp32",
        "device": "cpu",
        "epochs": float("nan"),
        "mfu": float("nan"),
        "budget_macs": float("nan"),
        "decayed": False,
        "status": "finished",
    }
    return row | outcome


def _loss(params: float, tokens: float) -> float:
    return float(2.0 + 6.0 / params**0.25 + 60.0 / tokens**0.35)


def simulated_rows(seed: int = 0) -> pd.DataFrame:
    """A learning-rate sweep (two runs diverge) and 5 sizes x 5 budgets (one more diverges)."""
    noise = np.random.default_rng(seed)
    return results.frame([*_sweep_rows(noise), *_ladder_rows(noise)])


def _sweep_rows(noise: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for d in WIDTHS:
        for log2_lr in range(-10, -2):
            macs = 2e11
            params = 24 * d * d + 516 * d
            tokens = macs / (3 * params)
            optimum = BEST_LOG2_LR + 0.2 * np.log2(d / 32)
            diverged = log2_lr == -3 and d >= 64
            loss = _loss(params, tokens) + 0.03 * (log2_lr - optimum) ** 2 + 0.003 * noise.normal()
            rows.append(
                _row(
                    f"lr{d:03d}{-log2_lr:02d}",
                    "lr_sweep",
                    d,
                    2,
                    log2_lr,
                    macs_total=int(macs),
                    tokens=int(tokens),
                    steps=int(tokens / 2056) + 1,
                    seconds=20.0,
                    val_loss=float("nan") if diverged else loss,
                    train_loss=loss - 0.02,
                    budget_macs=float("nan") if diverged else macs,
                    decayed=not diverged,
                    status="diverged" if diverged else "finished",
                )
            )
    return rows


def _ladder_rows(noise: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for d, layers in SIZES:
        params = 12 * layers * d * d + 516 * d
        for kind in ("trunk", "diverged") if d == 48 else ("trunk",):
            run_id = f"{kind[:2]}{d:03d}"
            end = 3e11 if kind == "diverged" else max(BUDGETS_MACS)
            for macs in np.geomspace(2e10, end, 14):
                tokens = macs / (3 * params)
                loss = _loss(params, tokens) + 0.06 + 0.004 * noise.normal()
                rows.append(
                    _row(
                        run_id,
                        "ladder",
                        d,
                        layers,
                        BEST_LOG2_LR,
                        macs_total=int(macs),
                        tokens=int(tokens),
                        steps=int(tokens / 2056) + 1,
                        seconds=macs / 2e10,
                        val_loss=loss,
                        train_loss=loss - 0.02,
                    )
                )
            if kind == "diverged":
                rows[-1] |= {"status": "diverged", "val_loss": float("nan")}
                for row in rows[-14:-1]:
                    row["status"] = "diverged"
                continue
            for budget in BUDGETS_MACS:
                tokens = budget / (3 * params)
                loss = _loss(params, tokens) + 0.003 * noise.normal()
                rows.append(
                    _row(
                        run_id,
                        "ladder",
                        d,
                        layers,
                        BEST_LOG2_LR,
                        macs_total=int(budget * 0.998),
                        tokens=int(tokens),
                        steps=int(tokens / 2056) + 1,
                        seconds=budget / 2e10,
                        val_loss=loss,
                        train_loss=loss - 0.02,
                        budget_macs=budget,
                        decayed=True,
                    )
                )
    return rows


@pytest.fixture(scope="session")
def rows() -> pd.DataFrame:
    return simulated_rows()


@pytest.fixture(scope="session")
def study_law(rows: pd.DataFrame) -> StudyLaw:
    return fit_frontier(rows)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token directory as `encode.prepare` leaves it: two sources, one damaged file."""
    folder = tmp_path_factory.mktemp("data") / "abc"
    folder.mkdir()
    noise = np.random.default_rng(0)
    original = noise.integers(0, 256, (6, 4, 16, 16, 3), dtype=np.uint8)
    reconstruction = np.clip(original.astype(int) + 5, 0, 255).astype(np.uint8)
    names = np.array(["leaves"] * 4 + ["cl<i>ps"] * 2)
    np.savez(folder / "samples.npz", original=original, reconstruction=reconstruction, source=names)
    (folder / "manifest.csv").write_text(
        "source,split,path,status,frames,clips,tokens,error\n"
        "leaves,train,(built-in),ok,4096,1024,65536,\n"
        "cl<i>ps,train,<b>a</b>.mp4,error,0,0,0,not a video\n"
    )
    sources = [
        {
            "name": name,
            "kind": kind,
            "weight": weight,
            "train": {"sequences": 1000},
            "validation": {"sequences": 64},
        }
        for name, kind, weight in (("leaves", "leaves", 4.0), ("cl<i>ps", "video", 1.0))
    ]
    index = {
        "frames": 4,
        "size": 16,
        "tokens_per_frame": 64,
        "context": 257,
        "tokenizer": {
            "label": "codebook-2px-512",
            "codes": 512,
            "codes_used": 355,
            "entropy_nats": 4.93,
            "reconstruction": {"leaves": {"psnr": 28.1}, "cl<i>ps": {"psnr": 31.4}},
        },
        "sources": sources,
    }
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def davis_table(run_id: str) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for weights, layers, level in (("trained", 3, 0.5), ("random", 3, 0.3), ("pixels", 1, 0.4)):
        for layer in range(layers):
            for sequence in ("camel", "swan", "kite"):
                of_a_run = weights != "pixels"
                rows.append(
                    {"run_id": run_id if of_a_run else None, "size": "t64" if of_a_run else None}
                    | {"layers": 2, "params": 1e5 if of_a_run else None, "weights": weights}
                    | {"macs_total": {"trained": 1e12, "random": 0.0}.get(weights)}
                    | {"protocol": "jabri", "rows": 24, "data": "val, 480p"}
                    | {"layer": layer, "depth": layer / 2}
                    | {"sequence": sequence, "object": 1, "frames": 9}
                    | {f"{m}_{s}": level + 0.05 * (layer == 1) + rng.normal(0, 0.01)
                       for m in "jf" for s in ("mean", "recall", "decay")}
                )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A study directory with probes, tracking with its strips, and a generated clip."""
    from tests.analysis.test_quality import table  # which imports this file

    rows = simulated_rows()
    table(rows, noise=0.01).to_csv(tmp_path / "probes.csv", index=False)
    davis_table("0a1b").to_csv(tmp_path / "davis.csv", index=False)
    folder = tmp_path / "davis" / "key"
    folder.mkdir(parents=True)
    (folder / "index.json").write_text(
        json.dumps({"protocol": "jabri", "rows": 24, "data": "val, 480p"})
    )
    frames = np.zeros((8, 12, 16, 3), np.uint8)
    masks = np.ones((3, 8, 12, 16), np.uint8)
    np.savez(folder / "frames-camel.npz", frames=frames, truth=masks[0])
    for stem in ("0a1b-trained2", "0a1b-random", "pixels"):
        np.savez(folder / f"{stem}-camel.npz", layers=np.arange(3), masks=masks)
    (tmp_path / "generated").mkdir()
    grid = pd.MultiIndex.from_product((("drawn", "clip"), range(6), range(4)))
    losses = pd.DataFrame(list(grid), columns=["what", "frame", "position"])
    losses = losses.assign(run_id="0a1b", size="t64", clip="dog", loss=2.0 + losses.frame / 10)
    losses.to_csv(tmp_path / "generated" / "0a1b-dog.csv", index=False)
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 40, 3), np.uint8)).save(buffer, "PNG")
    (tmp_path / "generated" / "0a1b-dog.png").write_bytes(buffer.getvalue())
    return tmp_path
