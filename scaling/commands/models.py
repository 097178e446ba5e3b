"""Commands about models: the table of sizes, the coordinate check. Imports are lazy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def models(
    names: Annotated[
        list[str] | None, typer.Argument(help="Sizes; default: all, table15 presets included.")
    ] = None,
) -> None:
    """Print every size: shape, parameters by convention, MACs per token by term, the paper's count.

    Example: `scaling models a1 a6 table15-a6 1b`
    """
    from scaling.models.macs import models_table

    head = f"{'size':12}{'d':>6}{'layers':>7}{'heads':>6}{'FFN':>7}{'vocab':>7}"
    head += f"{'params':>15}{'non-emb.':>15}{'matmul+head':>15}"
    head += f"{'qkvo':>12}{'attention':>12}{'ffn':>12}{'head':>12}{'MACs/token':>13}"
    print(head + f"{'printed':>10}{'diff':>8}")
    for row in models_table(names or None):
        printed = row["printed"]
        paper = f"{'-':>10}{'-':>8}" if printed is None else f"{printed:>10.4g}"
        if printed is not None:
            paper += f"{row['difference']:>+8.1%}"
        print(
            f"{row['name']:12}{row['d']:>6}{row['layers']:>7}{row['heads']:>6}{row['d_ff']:>7}"
            f"{row['vocab']:>7}{row['params_all']:>15,}{row['params_non_embedding']:>15,}"
            f"{row['params_matmul_head']:>15,}{row['macs_qkvo']:>12.4g}"
            f"{row['macs_attention']:>12.4g}{row['macs_ffn']:>12.4g}{row['macs_head']:>12.4g}"
            f"{row['macs_total']:>13.5g}{paper}"
        )
    print(
        "MACs per token: forward, over the paper's context of 16 x 256 tokens (tiny sizes: their "
        "own), attention causal. matmul+head: what a token is multiplied with."
    )


def coord_check(
    out: Annotated[
        Path, typer.Option("--out", help="The figure (HTML); its data go to NAME.points.csv.")
    ] = Path("coord_check.html"),
    widths: Annotated[
        str, typer.Option(help="Widths, separated by commas.")
    ] = "64,128,256,512,1024",
    family: Annotated[str, typer.Option(help="toto | gpt2 | mamba")] = "toto",
    optimizer: Annotated[str, typer.Option(help="adamw | muon")] = "adamw",
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 5,
    log2_lr: Annotated[float, typer.Option(help="log2 of the base learning rate.")] = -6.0,
) -> None:
    """Check muP: activations keep their scale over width under muP, not under the standard rules.

    Example: `scaling coord-check --optimizer muon`
    """
    from dataclasses import replace

    import pandas as pd

    from scaling.analysis.figures.model import coordinate_figure, coordinate_points
    from scaling.data.sample import sample_tokens
    from scaling.errors import UserError
    from scaling.models.coord_check import coord_check as check
    from scaling.models.family import size
    from scaling.storage import outputs

    command, table = "scaling coord-check", out.with_suffix(".points.csv")
    outputs.claim(command, out, table)

    if optimizer not in ("adamw", "muon"):
        raise UserError(f"--optimizer {optimizer}: choose adamw or muon")
    try:
        chosen = [int(w) for w in widths.split(",")]
    except ValueError:
        raise UserError(f"--widths {widths}: write whole numbers, as in 64,128,256") from None
    tokens_BT, vocab = sample_tokens()
    base = size(
        chosen[0],
        4,
        4,
        vocab=vocab,
        context=tokens_BT.shape[1] - 1,
        base_width=chosen[0],
        family=family,
    )
    pages: list[str] = []
    tables = []
    for parametrization in ("mup", "standard"):
        config = replace(base, parametrization=parametrization)
        result = check(
            config, tokens_BT, widths=chosen, lr=2.0**log2_lr, steps=steps, kind=optimizer
        )
        print(result.verdict)
        print("  " + ", ".join(f"{layer} {slope:+.3f}" for layer, slope in result.slopes.items()))
        points = coordinate_points(result.points)
        tables.append(points.assign(parametrization=parametrization))
        figure = coordinate_figure(points)
        figure.update_layout(title=f"{parametrization}: {result.verdict}")
        pages.append(figure.to_html(full_html=False, include_plotlyjs=not pages))
    outputs.write(command, out, "<!doctype html><meta charset=utf-8>" + "\n".join(pages))
    outputs.write(command, table, pd.concat(tables).to_csv(index=False))
    print(f"figure  {out}\ntable   {table}")
