"""Commands about tokens: what a study's tokens hold, and tokenizer files. Imports are lazy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaling.commands.planning import OutOption
from scaling.errors import UserError

tokenizer = typer.Typer(
    no_args_is_help=True, help="Tokenizer files: convert published ones, train small ones."
)


def tokens(
    where: Annotated[
        Path, typer.Argument(help="A study: its YAML or its folder; or a folder of tokens.")
    ],
    out: OutOption = None,
) -> None:
    """Print what a study's tokens hold: sources, files, tokens, hours, codes used, n-grams, PSNR.

    Example: `scaling tokens studies/quickstart`
    """
    from scaling.data.tokens import ngrams, tokens_summary
    from scaling.study.pipeline import not_whole
    from scaling.study_folder import TokenFolder

    for number, folder in enumerate(_token_folders(where, out)):
        about = tokens_summary(folder)
        print("\n" * (number > 0) + f"tokens    {folder}")
        weights = f"weights sha256 {about['sha256'][:16]}..." if about["sha256"] else "not here"
        print(f"tokenizer {about['tokenizer']}, {weights}")
        print(
            f"sequence  {about['frames']} frames of {about['size']} px, "
            f"{about['tokens_per_frame']} tokens a frame, {about['context'] + 1} tokens with start "
            "and end"
        )
        head = f"{'source':16}{'kind':8}{'share':>7}{'split':>12}{'files':>8}{'partial':>8}"
        print(head + f"{'errors':>7}{'hours':>9}{'frames':>11}{'sequences':>11}{'tokens':>15}")
        whole = sum(row["weight"] for row in about["rows"] if row["split"] == "train")
        for row in about["rows"]:
            print(
                f"{row['source'][:15]:16}{row['kind']:8}{row['weight'] / whole:>7.1%}"
                f"{row['split']:>12}{row['files']:>8,}{row['partial']:>8,}{row['errors']:>7,}"
                f"{row['hours']:>9.3f}{row['frames']:>11,}{row['sequences']:>11,}"
                f"{row['tokens']:>15,}"
            )
        train = [row["tokens"] for row in about["rows"] if row["split"] == "train"]
        size = sum(row["gigabytes"] for row in about["rows"])
        print(f"total     {sum(train):,} training tokens; {size:.3g} GB of shards")
        print(
            f"codes     {about['codes_used']:,} of {about['codes']:,} used in training "
            f"({about['coverage']:.1%}), entropy {about['entropy_nats']:.3f} nats"
        )
        for n in (1, 2, 3):
            if n <= about["tokens_per_frame"]:
                found = ngrams(folder, n)
                print(
                    f"{n}-grams   {len(found.counts):,} of {found.possible:.4g} occur "
                    f"({found.coverage:.2%}) among {found.counts.sum():,}"
                )
        said = ", ".join(f"{name} {value:.2f} dB" for name, value in about["psnr"].items())
        if said:
            print(f"PSNR      {said} (validation frames)")
        for line in not_whole(TokenFolder(folder).manifest):
            print(line)


def _token_folders(where: Path, out: Path | None) -> list[Path]:
    """The token directories of a study, or the one that is meant itself. Raises UserError."""
    from scaling.study_folder import Study, TokenFolder, choose

    if TokenFolder(where).index.exists():
        return [where]
    # A folder that was encoded alone has tokens and no study.yaml yet.
    encoded = where.is_dir() and out is None
    study = Study.open(where) if encoded else choose(where, out)[1]
    if not (found := study.tokens()):
        raise UserError(f"{study}: no tokens here; `scaling encode CONFIG` makes them")
    return [tokens.path for tokens in found]


@tokenizer.command()
def convert(
    sources: Annotated[
        list[Path], typer.Argument(help="One checkpoint, or the dVAE's encoder and decoder.")
    ],
    target: Annotated[Path, typer.Argument(help="The file to write (.safetensors).")],
    family: Annotated[
        str | None,
        typer.Option(
            help="vqgan | llamagen | ibq: how a vector becomes a code, where the file cannot tell."
        ),
    ] = None,
) -> None:
    """Write published weights as one safetensors file, which cannot hold code.

    Whole pickled modules, Lightning's checkpoints and TorchScript are read by their tensors: no
    code in them is run. Says what was taken of the file, and how well a made-up picture comes back.

    Example: `scaling tokenizer convert encoder.pkl decoder.pkl dvae.safetensors`
    """
    import math

    from scaling.data import leaves
    from scaling.models.tokenizers.weights import convert as run_convert
    from scaling.models.tokenizers.weights import load
    from scaling.storage import outputs

    for source in sources:
        if not source.is_file():
            raise UserError(f"{source}: no such file")
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: name the file to write with .safetensors at its end")
    command = "scaling tokenizer convert"
    target.parent.mkdir(parents=True, exist_ok=True)
    outputs.claim(command, target, inputs=sources)
    with outputs.writing(command, target) as unfinished:
        done = run_convert(sources, unfinished, family)
        made = load(unfinished)
    for line in done.told:
        print(line)
    print(
        f"{target}: {done.tensors} tensors, a {type(made).__name__} of {made.codes:,} codes, "
        f"{made.patch} px each"
    )
    clips = leaves.clips(0, 0, 1, frames=4, size=64)[0]
    side = 64 // made.patch * made.patch
    frames = clips[:, :side, :side]
    back, flat = made.decode(made.encode(frames)), frames.mean((1, 2), keepdims=True)
    found, of_flat = (
        10 * math.log10(255**2 / max(((x.astype(float) - frames) ** 2).mean(), 1e-9))
        for x in (back, flat)
    )
    print(
        f"check     {found:.1f} dB on pictures of leaves; their mean colours alone {of_flat:.1f} dB"
    )
    if found <= of_flat:
        print("beware: pictures do not come back: these are no trained weights, or of a network")
        print("        that has these names and other arithmetic")


@tokenizer.command()
def train(
    config: Annotated[
        Path, typer.Argument(help="A study whose `tokenizer:` is a dvae or a vqgan, or its folder.")
    ],
    target: Annotated[
        Path | None, typer.Argument(help="Where to keep the weights (.safetensors).")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value: section.key=value.")
    ] = None,
) -> None:
    """Train a small dVAE or VQGAN on a study's frames, and set it beside k-means.

    Both see the same training frames, with equal tokens a frame and equally many codes; PSNR is of
    frames of files that neither has seen. With a file for the weights, a training that was
    interrupted goes on where it was: give the same command.

    Example: `scaling tokenizer train sweeps/clips.yaml vqgan.safetensors --set
    tokenizer.kind=vqgan`
    """
    from scaling.data.fit_tokenizer import Kept, compare
    from scaling.storage import outputs
    from scaling.study.progress import teller
    from scaling.study_folder import choose

    study, _ = choose(config, overrides=set_ or ())
    if study.tokenizer.kind in ("codebook", "given") or study.tokenizer.weights is not None:
        raise UserError(
            f"tokenizer.kind is {study.tokenizer.kind}, or tokenizer.weights is there: there is "
            "nothing to train; add --set tokenizer.kind=vqgan (or dvae)"
        )
    if target is not None and target.suffix != ".safetensors":
        raise UserError(f"{target}: name the file to write with .safetensors at its end")
    kept = None if target is None else _training(target)
    if target is not None and not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}; make it first")
    command = "scaling tokenizer train"
    if target is not None:
        outputs.claim(command, target)
    found, fitted_on, judged_on = compare(
        study.data, study.tokenizer, seed=study.seed, kept=kept, progress=teller()
    )
    side = study.data.size // study.tokenizer.patch
    print(
        f"{fitted_on:,} training frames of {study.data.size} px; {side} x {side} tokens a frame, "
        f"{study.tokenizer.codes:,} codes; judged on {judged_on:,} held-out frames"
    )
    for one in found:
        decibel = ", ".join(f"{name} {value:.2f} dB" for name, value in one.psnr.items())
        print(
            f"{one.kind:9} {one.core_seconds:7.1f} core-s  {one.codes_used:,} codes used  {decibel}"
        )
    if target is not None:
        with outputs.writing(command, target) as unfinished:
            found[-1].tokenizer.save(unfinished)
        Kept.drop(_training(target))
        print(f"weights   {target}: use it with tokenizer.weights in a study")


def _training(target: Path) -> Path:
    return target.with_name(f".{target.name}.training")
