"""The paper, line by line: what arXiv 2501.05453 printed, and which command here answers it.

One table, of which the report's first section and the page of the docs are made. What the paper's
own text and tables contradict each other in is said where it matters (`note`).
"""

from __future__ import annotations

from dataclasses import dataclass

Cell = str | float


@dataclass(frozen=True)
class Item:
    """A table or figure of the paper, or a section without either.

    commands: what makes the row of a study here; none: nothing does, and `compared` says why.
    compared: what may be compared. printed: its rows under `columns`, none of a figure without
    numbers. toto: those of its rows that are the paper's own models; None: all. note: what to know
    of the printed numbers.
    """

    name: str
    what: str
    commands: tuple[str, ...]
    compared: str
    columns: tuple[str, ...] = ()
    printed: tuple[tuple[Cell, ...], ...] = ()
    toto: tuple[str, ...] | None = None
    note: str = ""

    @property
    def title(self) -> str:
        return f"{self.what} ({self.name})"

    def value(self, row: str, column: str = "top-1 (%)") -> float:
        """A printed number. Raises KeyError: no such row, or no number there."""
        found = {str(one[0]): one for one in self.printed}[row][self.columns.index(column)]
        if isinstance(found, str):
            raise KeyError(f"{self.name}, {row}: {found!r} under {column} is no number")
        return found

    def summary(self) -> str:
        """The paper's own rows in one line, `Toto-base 64.7, Toto-large 71.1: top-1 (%)`; "" of a
        figure. Of columns with a unit these, else the last one."""
        own = [row for row in self.printed if self.toto is None or row[0] in self.toto]
        if not own:
            return ""
        at = [i for i, column in enumerate(self.columns) if i and column.endswith(")")]
        at = at or [len(self.columns) - 1]
        told = ", ".join(f"{row[0]} {' / '.join(str(row[i]) for i in at)}" for row in own)
        return f"{told}: {' / '.join(self.columns[i] for i in at)}"


_SEE_CHOICES = (
    "which choice wins, and by how much; not the accuracies (other data, models and budgets)"
)
_OTHER_DATA = "trained less random weights, and how it grows with compute; not the accuracies"
_TOTO = ("Toto-base", "Toto-large", "Toto-1b")

ITEMS: tuple[Item, ...] = (
    Item(
        "Table 1", "Sizes of the models", ("scaling models base large 1b",),
        "all of it: the sizes are here, with each one's exact counts",
        ("model", "dimension", "heads", "layers", "parameters"),
        (("base", 768, 12, 12, "120m"), ("large", 1024, 16, 16, "280m"),
         ("1b", 2048, 16, 22, "1.1b")),
    ),
    Item(
        "Table 2", "Data of the training", ("scaling tokens STUDY",),
        "shares of the sources and tokens a frame; the data sets themselves must be yours",
        ("data set", "instances", "hours", "tokens"),
        (("ImageNet", "13.9M", "-", "3.6B"), ("Kinetics-600", "0.53M", 1496, "41.3B"),
         ("Ego4D", "52.1K", 3750, "103B"), ("HowTo100m", "1.172M", 92627, "2560B")),
        note="tokens are hours x 3600 x 30 frames x 256, without the stride of 4; they add to "
        "2.71e12, printed 2.5e12",
    ),
    Item(
        "Figure 2", "Loss while training", ("scaling study YAML",),
        "that larger models end lower; losses only of one tokenizer",
    ),
    Item(
        "Figure 3", "How often single codes occur", ("scaling tokens STUDY",),
        "coverage of the codes by tokenizer, on the same frames",
        note="dVAE almost all codes, VQGAN under half of them (10,000 images of ImageNet)",
    ),
    Item(
        "Table 3", "Input and target tokens",
        ("scaling represent sweeps/tokenizers.yaml --data LABELLED",), _SEE_CHOICES,
        ("tokens", "vocabulary", "top-1 (%)"),
        (("VQGAN-VQGAN 16x16 16k", "16k", 61.3), ("VQGAN-VQGAN 16x16 1k", "1k", 61.1),
         ("dVAE-dVAE 32x32", "8k", 61.2), ("dVAE-dVAE 16x16", "8k", 53.2),
         ("patch-patch 16x16", "-", 60.6), ("patch-dVAE 16x16", "8k", 58.5)),
    ),
    Item(
        "Table 4", "Token resolution",
        ("scaling represent sweeps/resolution.yaml --data LABELLED",),
        _SEE_CHOICES,
        ("method", "compute", "top-1 (%)"),
        (("dVAE/16", 1.42e17, 53.2), ("dVAE/32", 5.68e17, 61.2), ("dVAE/16→32", 2.13e17, 63.2),
         ("dVAE/16→32†", 2.13e17, 64.4)),
        note="the compute printed is forward MACs of one token x images: without the 256 tokens of "
        "an image and without the backward pass. † RoPE base 50,000",
    ),
    Item(
        "Table 5", "Pooling", ("scaling represent sweeps/pooling.yaml --data LABELLED",),
        _SEE_CHOICES,
        ("pooling", "tokens", "top-1 (%)"),
        (("Average", "16x16", 53.2), ("Attention", "16x16", 61.1)),
    ),
    Item(
        "Table 6", "Architecture", ("scaling represent sweeps/architecture.yaml --data LABELLED",),
        _SEE_CHOICES,
        ("model", "parameters", "top-1 (%)"),
        (("LLaMA", "280m", 53.2), ("GPT2", "280m", 48.5), ("Mamba", "290m", 40.7)),
    ),
    Item(
        "Figure 4", "Accuracy by layer, images", ("scaling probe STUDY --data PHOTOS",),
        "where in the depth the best layer lies (about half)",
    ),
    Item(
        "Table 7", "ImageNet, attention head, fine-tuned on next tokens",
        ("scaling probe STUDY --data PHOTOS",
         "scaling finetune STUDY --data PHOTOS --epochs 90 --lr 6e-5"), _OTHER_DATA,
        ("method", "architecture", "million parameters", "top-1 (%)"),
        (("SimCLR†", "RN50x2", 94, 74.2), ("BYOL†", "RN50x2", 94, 77.4),
         ("SwAV†", "RN50x2", 94, 73.5), ("DINO", "ViT-B/8", 86, 80.1),
         ("DINOv2", "ViT-g/14", 1011, 86.4), ("BEiT-L", "ViT-L/14", 307, 62.2),
         ("AIM", "ViT-1B/14", 1200, 80.6), ("MAE", "ViT-H/14", 632, 80.9),
         ("iGPT-L†", "GPT-2", 1386, 65.2), ("iGPT-XL†", "GPT-2", 6801, 72.0),
         ("Toto-base", "LLaMA", 120, 64.7), ("Toto-large", "LLaMA", 280, 71.1),
         ("Toto-1b", "LLaMA", 1100, 75.3)),
        _TOTO, "† by a linear head. Its rate of 6e-5 is of its models' own width; --lr is of the "
        "base width. Twice the side, base 50,000 and a layer's decay of .9 are defaults here",
    ),
    Item(
        "Table 8", "Kinetics-400, attention head",
        ("scaling probe STUDY --data CLIPS --clips 10 --crops 3",
         "scaling finetune STUDY --data CLIPS --clips 10 --crops 3"), _OTHER_DATA,
        ("method", "architecture", "top-1 (%)"),
        (("I-JEPA", "ViT-H/16", 74.5), ("OpenCLIP", "ViT-G/14", 83.3), ("DINOv2", "ViT-g/14", 84.4),
         ("InternVideo", "-", 73.7), ("Hiera", "Hiera-H/14", 77.0), ("MVD", "ViT-H/14", 79.4),
         ("VideoMAE", "ViT-L/14", 79.8), ("Toto-base", "LLaMA", 59.3),
         ("Toto-large", "LLaMA", 65.3), ("Toto-1b", "LLaMA", 74.4)),
        _TOTO,
    ),
    Item(
        "Table 9", "Ego4D, short-term anticipation",
        ("scaling anticipate STUDY", "scaling anticipate STUDY --data EGO4D"),
        "on the built-in clips: several frames less the last one alone, trained less random "
        "weights, with less without the next-token loss; on Ego4D's own files, on which this was "
        "never run, the figures too, of a head of one stage in place of StillFast's two",
        ("method", "noun (mAP)", "noun + verb (mAP)", "noun + time (mAP)", "overall (mAP)"),
        (("FRCNN+Rnd", 17.55, 1.56, 3.21, 0.34), ("FRCNN+SF", 17.55, 5.19, 5.37, 2.07),
         ("Hiera-large", 14.05, 6.03, 4.53, 2.12), ("StillFast", 16.20, 7.47, 4.94, 2.48),
         ("VideoMAE-large", 15.16, 6.72, 5.26, 2.55), ("MAE-ST-large", 13.71, 6.63, 4.94, 2.60),
         ("Toto-large", 15.20, 6.75, 5.41, 2.70)),
        ("Toto-large",), "frames, resolution, which five layers and the weight of the next-token "
        "loss are not given; the challenge leaves out frames without a prediction",
    ),
    Item(
        "Table 10", "Tracking on DAVIS", ("scaling davis STUDY --data DAVIS",),
        "J&F at the same rows of tokens, split, size and protocol; else trained less random "
        "weights and less the pixels' own colours",
        ("method (size/patch)", "J (%)", "F (%)", "J&F (%)"),
        (("DINO-base (224/8)", 52.5, 56.1, 54.3), ("DINO-base (224/16)", 36.2, 30.1, 33.1),
         ("MAE-base (224/16)", 34.1, 28.9, 31.5), ("Toto-base (256/8)", 41.2, 43.1, 42.0),
         ("Toto-large (256/8)", 44.4, 45.1, 44.8), ("Toto-1b (256/8)", 45.8, 46.4, 46.1),
         ("Toto-large (512/8)", 59.2, 65.6, 62.4)),
        ("Toto-base (256/8)", "Toto-large (256/8)", "Toto-1b (256/8)", "Toto-large (512/8)"),
    ),
    Item(
        "Figure 5", "Masks over 60 frames", ("scaling davis STUDY --data DAVIS",),
        "by eye: the strips and films of masks beside the truth",
    ),
    Item(
        "Figure 6", "Robots in simulation", (),
        "nothing: there is no simulator here. The paper gives curves and no number; its caption "
        "says reinforcement learning, its text DAgger",
    ),
    Item(
        "Table 11", "A robot in the real world", (),
        "nothing: 16 trials on a Franka arm, which no program can repeat",
        ("model", "trajectories", "success (%)"),
        (("MVP", 240, 75), ("Toto-base", 240, 63)), ("Toto-base",),
    ),
    Item("Figure 7", "An episode of that robot", (), "nothing: a photograph of the same trials"),
    Item(
        "Table 12", "Object permanence on CATER, 16 and 32 frames",
        ("scaling permanence DIR --frames 16", "scaling finetune STUDY --data DIR --frames 16"),
        "with CATER's own lists and videos all of it; on the built-in clips trained less random "
        "weights, above all where the ball is hidden at the end",
        ("method", "model", "16 frames (%)", "32 frames (%)"),
        (("V3D", "ResNet", 55.2, 69.7), ("TFC V3D", "ResNet", 54.6, 70.2),
         ("Toto-large", "LLaMA", 62.8, 72.9)),
        ("Toto-large",), "the text says 70.9 for 32 frames",
    ),
    Item(
        "Figure 8", "Accuracy by layer, over tasks",
        ("scaling probe STUDY --data CLIPS", "scaling davis STUDY --data DAVIS"),
        "where in the depth the best layer of each task lies (about half; of robots also the last)",
        note="robots are not here",
    ),
    Item(
        "Figure 9", "The law of compute", ("scaling study YAML", "scaling fit STUDY"),
        "the exponent, with its interval; the coefficient and the losses are of their tokenizer",
        ("law", "exponent"),
        (("Toto: L = 7.32 C^-0.0378", -0.0378), ("GPT-3: L = 2.57 C^-0.048", -0.048)),
        ("Toto: L = 7.32 C^-0.0378",),
        "printed with C 'in MACs'; its figure's line is that law with C in 10^6 MACs",
    ),
    Item(
        "Figure 10", "Loss along the sequence", ("scaling study YAML",),
        "that the first frame costs more than the others, and by how much",
        note="about 6 to 7 nats in the first frame, 2.5 to 3.9 later (Toto-large, Kinetics-400)",
    ),
    Item(
        "Figure 11", "The best learning rate over widths",
        ("scaling study YAML", "scaling transfer STUDY"),
        "that it does not move with the width; 2^-7 is of the paper's base width",
        ("rate", "log2"), (("of every width", -7),),
    ),
    Item(
        "A.2", "Attention in fine-tuning",
        ("scaling represent sweeps/attention.yaml --data LABELLED",), _SEE_CHOICES,
        ("attention", "top-1 (%)"), (("causal", 82.2), ("full", 82.6)),
    ),
    Item(
        "Table 13", "ImageNet, fine-tuned end to end, full attention",
        ("scaling finetune STUDY --data PHOTOS --end-to-end --attention full",), _OTHER_DATA,
        ("method", "top-1 (%)"),
        (("DINO", 82.8), ("MoCo v3", 83.2), ("BEiT", 83.2), ("MAE", 83.6), ("Toto-base", 82.6)),
        ("Toto-base",), "the model's size is that of A.2; the table says Toto alone",
    ),
    Item(
        "Table 14", "ImageNet, linear head", ("scaling probe STUDY --data PHOTOS --head average",),
        _OTHER_DATA,
        ("method", "architecture", "million parameters", "top-1 (%)"),
        (("iGPT-L", "GPT-2", 1386, 65.2), ("Toto-1b", "LLaMA", 1100, 66.2)), ("Toto-1b",),
    ),
    Item(
        "Table 15", "Sizes a1 to a6", ("scaling models a1 a2 a3 a4 a5 a6",),
        "all of it; the counts printed follow another rule than figures 9 and 11: the sizes "
        "`table15-a1` to `table15-a6` have them",
        ("model", "dimension", "heads", "layers", "parameters"),
        (("a1", 256, 16, 12, "14.8M"), ("a2", 512, 16, 16, "77.2M"), ("a3", 768, 16, 20, "215M"),
         ("a4", 1024, 16, 24, "458M"), ("a5", 1536, 16, 28, "1.2B"), ("a6", 1792, 16, 32, "1.9B")),
    ),
    Item(
        "Figure 12", "How often pairs of codes occur", ("scaling tokens STUDY",),
        "coverage of pairs by tokenizer, on the same frames",
    ),
    Item(
        "Figure 13", "How often triples of codes occur", ("scaling tokens STUDY",),
        "coverage of triples by tokenizer, on the same frames",
    ),
    Item(
        "Table 16", "Kinetics-400, cross-attention with an MLP",
        ("scaling probe STUDY --data CLIPS --head cross --clips 10 --crops 3",), _OTHER_DATA,
        ("method", "architecture", "top-1 (%)"),
        (("Hiera-L", "Hiera-L/14", 74.2), ("Hiera-H", "Hiera-H/14", 75.2),
         ("VideoMAE-B", "ViT-B/14", 65.4), ("VideoMAE-L", "ViT-L/14", 74.8),
         ("Toto-base", "LLaMA", 61.2), ("Toto-large", "LLaMA", 65.8), ("Toto-1b", "LLaMA", 74.8)),
        _TOTO,
    ),
    Item(
        "A.8", "Generated frames", ("scaling generate RUN --prompt CLIP --frames 64",),
        "by eye; 64 frames as the paper draws, beyond the context by a sliding window. Its "
        "prompted tasks are not here",
    ),
    Item(
        "Figure 14", "Accuracy by layer, linear head",
        ("scaling probe STUDY --data PHOTOS --head average",),
        "where in the depth the best layer lies (about half)",
    ),
)  # fmt: skip
BY_NAME = {item.name: item for item in ITEMS}
CHOICES = ("Table 3", "Table 4", "Table 5", "Table 6", "A.2")  # what variants are named after


def page() -> str:
    """docs/method/paper.md, which a test holds to this table."""
    parts = [
        "# The paper, line by line",
        "Every table and figure of Toto (arXiv 2501.05453): what is printed, the command that "
        "makes a study's own row, and what may be compared. The report of `scaling represent` "
        "begins with the same table, filled. The paper's models were trained on 10¹² tokens; "
        "nothing of that size has been trained with this tool.",
    ]
    for item in ITEMS:
        parts.append(f"## {item.name}: {item.what}")
        parts += ["\n".join(("```", *item.commands, "```"))] * bool(item.commands)
        parts.append(f"May be compared: {item.compared}.")
        parts += [f"Of what is printed: {item.note}."] * bool(item.note)
        if item.printed:
            rows = [item.columns, ["---"] * len(item.columns), *item.printed]
            parts.append("\n".join(f"| {' | '.join(map(str, row))} |" for row in rows))
    return "\n\n".join(parts) + "\n"
