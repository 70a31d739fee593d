"""`drivekd data ...`: records are made, converted, checked, compared and split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from drivekd.errors import DrivekdError

data = typer.Typer(no_args_is_help=True, help="Make, convert and check records.")

Out = Annotated[Path, typer.Option("--out", help="Where the result is written.")]
ImageRoot = Annotated[Path | None, typer.Option(help="Folder that picture paths start from; default: the file's own.")]
Frames = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Which pictures a frame has, for NuScenes-QA: DriveLM, or sample_data.json.")
]
CapabilityOf = Annotated[
    str | None, typer.Option(help="perception, reasoning or planning: of records that name no question_type.")
]
RECORDS = "Records: Drive-KD, LLaMA-Factory, ms-swift, DriveLM, DriveBench or NuScenes-QA; .json, .jsonl, .gz."


def _print_table(title: str, header: list[str], rows: Any) -> None:
    from drivekd.tables import print_table

    print_table(title, header, [[str(cell) for cell in row] for row in rows])


@data.command()
def world(
    out: Out,
    frames: Annotated[int, typer.Option(min=1, help="Training frames.")] = 2000,
    labelled: Annotated[int, typer.Option(min=0, help="How many of them keep their answers.")] = 400,
    validation: Annotated[int, typer.Option(min=0, help="Frames of validation.json, of other scenes.")] = 200,
    test: Annotated[int, typer.Option(min=0, help="Frames of test.json, of other scenes.")] = 400,
    cameras: Annotated[str, typer.Option(help="front or six.")] = "front",
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Render the built-in driving world: records, pictures, manifest, contact sheet."""
    from drivekd.world.build import build_world_with_progress

    rows = build_world_with_progress(
        out, frames=frames, labelled=labelled, validation=validation, test=test, cameras=cameras, seed=seed
    )
    _print_table(f"driving world in {out}", ["", ""], rows)


@data.command()
def validate(
    file: Annotated[Path, typer.Argument(help=RECORDS)],
    image_root: ImageRoot = None,
    unlabelled: Annotated[bool, typer.Option("--unlabelled", help="Records need no answer.")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Ask its tokenizer for chat markers, its contract for budgets.")] = None,
    capability: CapabilityOf = None,
    frames: Frames = None,
    skip_images: Annotated[bool, typer.Option("--skip-images", help="Do not look at pictures.")] = False,
    fix: Annotated[Path | None, typer.Option(metavar="OUT", help="Write what is sound, or can be mended, to OUT.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check every record and image of a file; names each defect by file, record and field. Exit code 1 for a problem."""
    from drivekd.data.checks.command import validate_command

    options: dict[str, Any] = {"unlabelled": unlabelled, "capability": capability, "frames": frames}
    report, mended = validate_command(
        file, image_root=image_root, checkpoint=checkpoint, skip_images=skip_images, fix=fix, **options
    )
    if as_json:
        typer.echo(json.dumps(report.to_json() | ({"fixed": dict(mended.rows)} if mended else {})))
    else:
        for warning in report.warnings:
            typer.echo(f"warning: {warning}", err=True)
        _print_table(str(file), ["", ""], (*report.rows, *(mended.rows if mended else ())))
    if not report.ok:
        raise DrivekdError("\n       ".join(map(str, report.problems)))


@data.command()
def convert(
    source: Annotated[Path, typer.Argument(help=RECORDS)],
    out: Out,
    to: Annotated[str, typer.Option(help="drivekd | llama-factory | ms-swift | drivebench | drivelm")] = "drivekd",
    image_root: ImageRoot = None,
    capability: CapabilityOf = None,
    frames: Frames = None,
    skip: Annotated[bool, typer.Option("--skip", help="Leave out records with problems, counted.")] = False,
) -> None:
    """Records of one format become records of another."""
    from drivekd.data.writers.convert import convert_file

    options: dict[str, Any] = {"to": to, "capability": capability}
    report = convert_file(source, out, image_root=image_root, frames=frames, skip=skip, **options)
    _print_table(str(out), ["", ""], report.rows)


@data.command()
def overlap(
    first: Annotated[Path, typer.Argument(help=RECORDS)],
    second: Annotated[Path, typer.Argument(help=RECORDS)],
    image_root: Annotated[Path | None, typer.Option(help="Folder that picture paths of both files start from.")] = None,
    image_root_a: Annotated[Path | None, typer.Option(help="Of the first file alone.")] = None,
    image_root_b: Annotated[Path | None, typer.Option(help="Of the second file alone.")] = None,
) -> None:
    """Scenes, frames and images that two files share: a leak when one trains and the other scores."""
    from drivekd.data.checks.overlap import overlap as find_overlap

    report = find_overlap(first, second, image_root=image_root, image_root_a=image_root_a, image_root_b=image_root_b)
    _print_table("shared", ["", ""], report.rows)
    if not report.disjoint:
        raise DrivekdError(f"{first} and {second} overlap; a score on one after training on the other is not a test score")
    if not report.comparable:
        raise DrivekdError(
            f"{first} and {second}: nothing could be compared that would show a leak; see the table for what is missing"
        )


@data.command()
def split(
    file: Annotated[Path, typer.Argument(help=RECORDS)],
    out: Out,
    test: Annotated[float, typer.Option(help="Share of the questions.")] = 0.1,
    validation: Annotated[float, typer.Option(help="Share of the questions; 0 = no such file.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    image_root: ImageRoot = None,
) -> None:
    """train.json, validation.json and test.json that share no scene."""
    from drivekd.data.writers.split import split_file

    report = split_file(file, out, test=test, validation=validation, seed=seed, image_root=image_root)
    _print_table(str(out), list(report.header), report.rows)
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
