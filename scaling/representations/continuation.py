"""Generation: a clip's first frames are continued by a trained model, and how surprised it is.

Writes STUDY/generated/<run>-<clip>.mp4 (or .gif), a strip .png and a table .csv beside it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from scaling.data import media, shards
from scaling.data.video import read_video
from scaling.errors import UserError
from scaling.models.decoder import Decoder
from scaling.models.generate import generate
from scaling.representations.features import with_start
from scaling.representations.trained import data_dir_of, open_tokenizer, run_in
from scaling.storage import files, outputs
from scaling.study_folder import RunFolder, Study

SHOWN = 128  # px on the side of a frame that is written
STRIP_FRAMES = 16
COLUMNS = ("run_id", "size", "clip", "what", "frame", "position", "loss")


def continue_clip(
    run_dir: Path,
    clip: Path,
    *,
    frames: int,
    prompt_frames: int | None = None,
    out: Path | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> tuple[Path, Path, Path]:
    """Draw `frames` frames after the first ones of a clip; returns the video, strip and table.

    The video shows the clip above what was drawn after its prompt. The table has the loss (nats) of
    every token, by frame and position in the frame: of what was drawn, and of the clip's own frames
    as far as they go.

    Args:
        prompt_frames: default half of the frames that the model was trained on, at least one.
        out: .mp4 or .gif; default STUDY/generated/RUN-CLIP.mp4.
    Raises:
        UserError: a clip that cannot be read or is too short, a model of patches, another suffix.
    """
    trained = run_in(run_dir)
    study = RunFolder(run_dir.resolve()).study()
    config = trained.run.model
    if config.patch_inputs or config.patch_targets:
        raise UserError(f"{run_dir}: {config.name} works on patches; only tokens can be drawn")
    tokenizer, index = open_tokenizer(data_dir_of(study, trained.run))
    out, strip, table = targets(study, trained.run_id, clip, out)
    given = prompt_frames or max(1, index["frames"] // 2)
    if min(given, frames) < 1:
        raise UserError(f"{given} frames of prompt and {frames} to draw: want at least one of each")
    own = _read(clip, given, frames, index)
    L = index["tokens_per_frame"]
    truth = with_start(tokenizer.encode(own).reshape(1, -1), shards.VIDEO_START)
    prompt = truth[:, : 1 + given * L]
    model = trained.model("trained")
    drawn = generate(
        model, prompt, frames=frames, tokens_per_frame=L, temperature=temperature, top_k=top_k,
        top_p=top_p, codes_from=shards.SPECIALS, seed=seed,
    )  # fmt: skip
    sequence = torch.cat((prompt, drawn), 1)
    drawn_FL = (sequence[0, 1:] - shards.SPECIALS).view(-1, L)
    pictures = tokenizer.decode(drawn_FL.numpy().astype(np.uint16))
    lines = [",".join(COLUMNS)]
    for what, ids in (("drawn", sequence), ("clip", truth)):
        about = f"{trained.run_id},{config.name},{clip.stem},{what}"
        loss_FL = losses(model, ids, tokens_per_frame=L).numpy()
        lines += [f"{about},{f},{p},{loss:.6f}" for (f, p), loss in np.ndenumerate(loss_FL)]
    above = np.concatenate((own, np.zeros_like(pictures[len(own) :])))
    both = np.concatenate((_enlarged(above), _enlarged(pictures)), axis=1)
    fps = max(1, round(25 / index["settings"]["stride"]))
    with files.explained(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_video(outputs.GENERATE, out, both, fps=fps)
        outputs.write(outputs.GENERATE, strip, _strip(above, pictures))
        outputs.write(outputs.GENERATE, table, "\n".join(lines) + "\n")
    return out, strip, table


def targets(
    study: Study, run_id: str, clip: Path, out: Path | None = None
) -> tuple[Path, Path, Path]:
    """Where the video, strip and table go; UserError for another suffix, files of others there."""
    out = out or study.generated_dir / f"{run_id}-{clip.stem}.mp4"
    if out.suffix not in (".mp4", ".gif"):
        raise UserError(f"--out {out}: end it in .mp4 or .gif")
    found = out, out.with_suffix(".png"), out.with_suffix(".csv")
    outputs.claim(outputs.GENERATE, *found, inputs=[clip])
    return found


def _read(clip: Path, given: int, frames: int, index: dict[str, Any]) -> np.ndarray:
    """The clip's frames, uint8 (T, S, S, 3): the prompt and as many after it as there are."""
    settings = {"size": index["size"], "stride": index["settings"]["stride"], "clips": 1}
    settings["fps"] = index["settings"].get("fps")
    if not clip.is_file():
        raise UserError(f"--prompt {clip}: no such file")
    wanted = given + frames
    while True:
        try:
            clips = read_video(clip, frames=wanted, rng=None, **settings)
            pixels: np.ndarray = clips.pixels[0]
            return pixels
        except media.MediaError as error:
            if wanted == given:
                raise UserError(f"--prompt {clip}: {error}") from None
            wanted = max(given, wanted * 3 // 4)


@torch.inference_mode()
def losses(model: Decoder, ids: torch.Tensor, *, tokens_per_frame: int) -> torch.Tensor:
    """Nats of every token of a sequence (1, 1 + frames L), (frames, L).

    Beyond the context the window slides by frames, as in generation: a frame is predicted from the
    start token and the whole frames that fit before it.
    """
    room = (model.config.context - 1) // tokens_per_frame
    frames = ids[0, 1:].view(-1, tokens_per_frame)
    out = torch.empty(frames.shape)
    for f in range(len(frames)):
        first = max(0, f + 1 - room)
        if 0 < f < min(room, len(frames)):
            continue  # was read with the first window
        last = min(room, len(frames)) if f == 0 else f + 1
        window = torch.cat((ids[0, :1], frames[first:last].reshape(-1)))[None]
        nats = F.cross_entropy(
            model(window[:, :-1])[0].float(), window[0, 1:], reduction="none"
        ).view(-1, tokens_per_frame)
        out[f:last] = nats if f == 0 else nats[-1:]
    return out


def _enlarged(frames: np.ndarray) -> np.ndarray:
    """Pixels repeated to about SHOWN on the side, an even number."""
    times = max(1, SHOWN // frames.shape[1])
    times += (times * frames.shape[1]) % 2
    return frames.repeat(times, axis=1).repeat(times, axis=2)


def write_video(maker: str, path: Path, frames: np.ndarray, *, fps: int) -> None:
    """uint8 (T, H, W, 3) as H.264 in .mp4, or as .gif; whole or absent; an output of `maker`."""
    with outputs.writing(maker, path) as unfinished:
        if path.suffix == ".gif":
            images = [Image.fromarray(f) for f in frames]
            images[0].save(
                unfinished, save_all=True, append_images=images[1:], duration=1000 // fps, loop=0
            )
        else:
            with av.open(str(unfinished), "w") as container:
                stream = container.add_stream("libx264", rate=fps, options={"crf": "16"})
                stream.codec_context.thread_count = 1  # so the same frames give the same file
                stream.height, stream.width = frames.shape[1:3]
                stream.pix_fmt = "yuv420p"
                for frame in frames:
                    picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                    container.mux(stream.encode(picture))
                container.mux(stream.encode())


def _strip(above: np.ndarray, pictures: np.ndarray) -> bytes:
    """A PNG of evenly spaced frames, side by side, the clip's above the others."""
    at = np.linspace(0, len(pictures) - 1, min(STRIP_FRAMES, len(pictures))).round().astype(int)
    sheet = np.concatenate([np.concatenate((above[t], pictures[t])) for t in at], axis=1)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG")
    return buffer.getvalue()
