"""What `fmoe export` does: the model read and verified, the file whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from fmoe import model_folder, programs
from fmoe.errors import UserError, first_line
from fmoe.locate import located
from fmoe.storage.folder import sha256
from fmoe.version import VERSION


def exported(model: str, kind: programs.Format, target: Path, gate_weights: bool) -> dict[str, Any]:
    """Gives what `fmoe export --json` prints. Raises `UserError`."""
    if kind is programs.Format.ONNX:
        programs.check_onnx()
    with located(model) as folder:
        network, config, card = model_folder.load_model(folder)
    facts = model_folder.facts_of(card)
    about = {
        "classes": list(facts.classes),
        "input_shape": list(facts.shape),
        "experts": list(config.experts.names),
        "threat": {"norm": config.evaluate.norm, "eps": config.evaluate.eps},
        "model_sha256": card["sha256"],
        "fmoe": VERSION,
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as aside:
            made = Path(aside) / f"program.{kind}"
            difference = programs.write(
                network, facts.shape, about, kind, made, gate_weights=gate_weights
            )
            digest, size = sha256(made.read_bytes()), made.stat().st_size
            os.replace(made, target)
    except OSError as error:
        raise UserError(f"--to {target}: cannot be written ({first_line(error)})") from None
    return {
        "path": str(target),
        "format": str(kind),
        "digest": digest,
        "bytes": size,
        "outputs": list(programs.OUTPUTS[: 1 + gate_weights]),
        "largest_difference": difference,
        **about,
    }
