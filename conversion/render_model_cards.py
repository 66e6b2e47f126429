# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Write `model_cards/<name>.md` for the ten official checkpoints, or check that they are up to date.

    python conversion/render_model_cards.py
    python conversion/render_model_cards.py --check

The text is `src/cait_hf/cards/checkpoint.md`, the numbers are those of `cait_hf.checkpoints`. No file was converted
for these cards, so they name none; `convert_cait_to_hf.py` writes such a card into every folder that it makes.
"""

import argparse
import sys
from pathlib import Path

from cait_hf import CHECKPOINTS, CaitCheckpoint, CaitConfig
from cait_hf.cards.checkpoint import render_model_card
from cait_hf.command_line import add_debug_argument, run_command
from cait_hf.files import write_text


MODEL_CARDS = Path(__file__).resolve().parents[1] / "model_cards"


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Write nothing; exit with 1 if a card would change.")
    parser.add_argument("--output_dir", type=Path, default=MODEL_CARDS, help="Folder of the cards.")
    add_debug_argument(parser)
    return run_command(render, parser.parse_args(argv))


def render(args: argparse.Namespace):
    """Write the cards, or with `--check` raise ValueError if they are not what would be written."""
    cards = {f"{checkpoint.hub_name}.md": official_card(checkpoint) for checkpoint in CHECKPOINTS}
    if args.check:
        check(args.output_dir, cards)
        return
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, card in cards.items():
        write_text(args.output_dir / name, card)
    print(f"Wrote {len(cards)} model cards to {args.output_dir}.")


def official_card(checkpoint: CaitCheckpoint) -> str:
    """The card of a checkpoint that no file was converted for."""
    return render_model_card(
        CaitConfig(**checkpoint.config_kwargs, num_labels=1000), checkpoint.hub_name, checkpoint=checkpoint
    )


def check(folder: Path, cards: dict[str, str]):
    present = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("cait-*.md")}
    changed = sorted(name for name in cards | present if cards.get(name) != present.get(name))
    if changed:
        raise ValueError(
            f"{folder} is out of date in {', '.join(changed)}: run python conversion/render_model_cards.py."
        )


if __name__ == "__main__":
    sys.exit(main())
