"""Write the seeds of the corpus: python -m fuzz.seeds. A seed is read if its name begins with whole."""

import gzip
import io
import json
from typing import Any

import numpy as np
import torch
from fuzz.engine import CORPUS
from fuzz.readers import CLASSES, PIXEL, STAMP, idx_bytes, shard_bytes, tiny_contender, tiny_network, tiny_trainer
from PIL import Image
from safetensors.torch import save

from batchnorm.paper.inception.config import InceptionConfig
from batchnorm.paper.inception.settled import run_digest, settled
from batchnorm.paper.inception.variants import BY_NAME
from batchnorm.paper.mnist.config import MnistConfig, config_to_json
from batchnorm.paper.training.settings import digest, json_values
from batchnorm.paper.trial.config import TrialSettings

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
ARM_ROW = {"step": 1, "arm": "bn", "loss": 0.5, "test_accuracy": 0.9, "p15": -1.0, "p50": 0.0, "p85": None}


def main() -> None:
    """Write every seed."""
    for reader, seeds in all_seeds().items():
        folder = CORPUS / reader
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in seeds.items():
            (folder / name).write_bytes(content)


def all_seeds() -> dict[str, dict[str, bytes]]:
    """Return the seeds of each reader by their names."""
    idx = {"whole": idx_bytes(2, 28, 28), "short": idx_bytes(2, 28, 28)[:-1], "axes": idx_bytes(*[1] * 65)}
    return {
        "idx": idx,
        "idx-gzip": {name: gzip.compress(content, mtime=0) for name, content in idx.items()},
        "shard": shard_seeds(),
        "shard-index": {"whole": index_bytes(1), "contradiction": index_bytes(2), "cut": index_bytes(1)[:600]},
        "label": {"whole": b"0", "negative": b"-1", "spaces": b" 7\n", "large": b"9" * 20, "empty": b""},
        "image": {f"whole-{form.lower()}": image_bytes(form) for form in FORMATS},
        "mnist-settings": mnist_seeds(),
        "inception-settings": inception_seeds(),
        "trial-settings": trial_seeds(),
        "rows": row_seeds(),
        "mnist-checkpoint": {
            "whole": saved({"step": 4, "diverged": False, "model": tiny_network().state_dict()}),
            "digest": saved({"step": 4, "digest": "0", "model": {}}),
            "list": saved([1, torch.ones(2)]),
        },
        "inception-checkpoint": {
            "whole": saved(trainer_state()),
            "no-momentum": saved({**trainer_state(), "optimizer": 1}),
        },
        "trial-checkpoint": {
            "whole": saved(contender_state()),
            "other-shape": saved({**contender_state(), "optimizer": {0: {"momentum_buffer": torch.ones(7)}}}),
        },
        "weights-pt": {"whole": saved(tiny_network().state_dict()), **strange_tensors(), "old": saved_before_1_6()},
        "weights-safetensors": {"whole": save(tiny_network().state_dict()), "other": save({"x": torch.ones(2)})},
    }


def shard_seeds() -> dict[str, bytes]:
    """Return shards of one image, in several kinds of tar."""
    members = [("a/0.png", image_bytes("PNG")), ("a/0.cls", b"0")]
    return {
        "whole": shard_bytes(*members),
        "no-label": shard_bytes(members[0]),
        "cut": shard_bytes(*members)[:-512],
        "long-name": shard_bytes((f"{'d' * 60}/{'n' * 60}.png", b""), ("0.cls", b"0")),
    }


def image_bytes(form: str) -> bytes:
    """Return an image of 3x2 pixels."""
    file = io.BytesIO()
    Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3)).save(file, form)
    return file.getvalue()


def index_bytes(keys: int) -> bytes:
    """Return an index of one image that has so many keys."""
    file = io.BytesIO()
    names = np.array([b"0"] * keys)
    np.savez(file, stamps=np.array([STAMP]), ends=np.array([1]), keys=names, places=np.array([[512, len(PIXEL), 0]]))
    return file.getvalue()


def mnist_seeds() -> dict[str, bytes]:
    """Return the settings of `batchnorm mnist`, with a digest and without."""
    saved: dict[str, Any] = {"experiment": "mnist", **config_to_json(MnistConfig(threads=1)), "made_with": {}}
    kept = {**saved, "digest": digest(MnistConfig(), "mnist")}
    edited = {**kept, "lr": 0.2}
    return {name: as_json(v) for name, v in {"whole": saved, "whole-digest": kept, "edited": edited}.items()}


def inception_seeds() -> dict[str, bytes]:
    """Return the settings of `batchnorm inception`, with a digest and without."""
    variant = BY_NAME["bn-baseline"]
    config = settled(InceptionConfig(data="fashion", workers=0, threads=1), variant)
    saved: dict[str, Any] = {"experiment": "inception", "variant": variant.name, **json_values(config), "made_with": {}}
    kept = {**saved, "digest": run_digest(config, variant)}
    return {name: as_json(value) for name, value in {"whole": saved, "whole-digest": kept}.items()}


def trial_seeds() -> dict[str, bytes]:
    """Return the settings of `batchnorm trial`, with a digest, and edited."""
    settings = TrialSettings(
        network="mine:network",
        data="mine:batches",
        eval_data=None,
        loss=None,
        metric=None,
        subject="0123456789abcdef",
        score="accuracy",
        higher=True,
        arms=("plain", "bn"),
        why_alone="",
        one_start=False,
    )
    made = {"digest": digest(settings, "trial"), "made_with": {}}
    kept: dict[str, Any] = {"experiment": "trial", **json_values(settings), **made}
    return {"whole": as_json(kept), "edited": as_json({**kept, "lr": 0.2})}


def row_seeds() -> dict[str, bytes]:
    """Return records of each kind."""
    training = {"step": 1, "loss": None, "epoch": 0.5, "lr": 0.1, "waited": 0.0, "top1": 0.5, "top5": 0.9}
    setting = {"name": "all", "runs": ["a"], "crops": 1, "size": 28, "folded": True}
    kinds = {
        "arm": [ARM_ROW, {**ARM_ROW, "step": 2}],
        "sweep": [{**ARM_ROW, "lr": 0.1, "std": 0.1, "seed": 1}],
        "training": [training, {"step": 2, "loss": None, "diverged": True}],
        "trial": [{"arm": "bn", "times": 5.0, "lr": 0.5, "seed": 1, "step": 2, "loss": 0.5, "score": None}],
        "evaluation": [{**setting, "images": 9, "top1": 0.5, "top5": 1}],
    }
    found = {f"whole-{kind}": b"".join(as_json(row) + b"\n" for row in rows) for kind, rows in kinds.items()}
    return {**found, "cut": as_json(ARM_ROW) + b"\n" + as_json(ARM_ROW)[:20]}


def trainer_state() -> dict[str, Any]:
    """Return a checkpoint of `batchnorm inception` whose optimizer has momentum."""
    trainer = tiny_trainer()
    trainer.model(torch.ones(2, 1, 1, 2)).sum().backward()
    trainer.optimizer.step()
    parts = {"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()}
    return {"step": 1, "diverged": False, "classes": CLASSES, "channels": 1, "processes": 1, **parts}


def contender_state() -> dict[str, Any]:
    """Return a checkpoint of `batchnorm trial` whose optimizer has momentum."""
    training = tiny_contender()
    training.model(torch.ones(2, 1, 1, 2)).sum().backward()
    training.optimizer.step()
    return {"step": 1, "diverged": False, **training.state()}


def strange_tensors() -> dict[str, bytes]:
    """Return weights in which one tensor is of a kind that does not fit."""
    zeros, state = torch.zeros(2), tiny_network().state_dict()
    strange = {"sparse": zeros.to_sparse(), "meta": zeros.to("meta"), "complex": zeros * 1j}
    return {name: saved({**state, "1.bias": tensor}) for name, tensor in strange.items()}


def saved(state: object) -> bytes:
    """Return a file that torch.save writes."""
    torch.manual_seed(0)
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def saved_before_1_6() -> bytes:
    """Return a file in torch's format of before version 1.6, which is no zip file."""
    file = io.BytesIO()
    torch.save(tiny_network().state_dict(), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def as_json(value: object) -> bytes:
    """Return a value in JSON."""
    return json.dumps(value).encode()


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
