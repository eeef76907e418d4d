"""What UniTS was published as: its sizes, and the task lists that its checkpoints hold tokens of.

The authors keep the lists in `multi_task.yaml` and `multi_task_pretrain.yaml` and publish no
config, so that a folder without a `configs_list` of its own gets this one:
`published(pretrain=True)`. The model is in `units.py`.
"""

from __future__ import annotations

from typing import Any

from sffbench.models.base import Preset

# Pre-training saw these under the names ECL, ETTh1, ...; the minute-wise ETTs are not in its list.
OVERLAP = {
    **dict.fromkeys(("ETTh1", "Electricity", "Traffic", "Weather", "Exchange", "ILI"), "yes"),
    **dict.fromkeys(("ETTh2", "ETTm1", "ETTm2"), "no"),
}

ORIGIN = "the release `ckpt` of github.com/mims-harvard/UniTS"


def _shape(width: int, *, pretrain: bool) -> dict[str, Any]:
    return {
        "prompt_num": 10,
        "d_model": width,
        "n_heads": 8,
        "e_layers": 3,
        "patch_len": 16,
        "stride": 16,
        "pretrain": pretrain,
    }


def _published(
    config: dict[str, Any], num_parameters: int, file: str = "", note: str = ""
) -> Preset:
    return Preset(
        config=config,
        lookback=96,
        horizon=96,
        num_parameters=num_parameters,
        lr=1e-4,
        licence="MIT",
        overlap=OVERLAP,
        files=(file,) if file else (),
        origin=ORIGIN if file else "",
        note="overlap: the authors' multi_task_pretrain.yaml" + (f"; {note}" if note else ""),
    )


PRESETS = {
    "tiny": Preset(
        config={
            **_shape(32, pretrain=False),
            "max_len": 128,
            "configs_list": [
                [
                    "LTF_synthetic",
                    {
                        "task_name": "long_term_forecast",
                        "dataset": "synthetic",
                        "seq_len": 512,
                        "pred_len": 96,
                        "enc_in": 1,
                    },
                ]
            ],
        },
        lookback=512,
        horizon=96,
        num_parameters=215_448,
        lr=1e-3,
        licence="Apache-2.0",
        note="made here by `sffbench pretrain units:tiny` on synthetic series",
    ),
    "x32": _published(_shape(32, pretrain=True), 1_510_056, "units_x32_pretrain_checkpoint.pth"),
    "x64": _published(
        _shape(64, pretrain=True), 3_333_000, note="no file of it is named by the authors' scripts"
    ),
    "x128": _published(_shape(128, pretrain=True), 8_066_376, "units_x128_pretrain_checkpoint.pth"),
    "x64-supervised": _published(
        _shape(64, pretrain=False), 3_451_192, "units_x64_supervised_checkpoint.pth"
    ),
    "x128-prompt": _published(
        _shape(128, pretrain=False), 8_245_560, note="the prompt-tuned x128 that its recipe writes"
    ),
    "x64-zeroshot": Preset(
        config={**_shape(64, pretrain=True), "shared_tokens": True},
        lookback=96,
        horizon=96,
        num_parameters=1_108_552,
        lr=1e-4,
        licence="MIT",
        note="shared prompt tokens; the authors never released these weights",
    ),
}

Task = tuple[str, dict[str, Any]]  # (name, its settings), as in the authors' `configs_list`

# data set: channels, lookback, horizons
FORECASTS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "NN5": (111, 112, (112,)),
    "ECL": (321, 96, (96, 192, 336, 720)),
    "ETTh1": (7, 96, (96, 192, 336, 720)),
    "Exchange": (8, 96, (192, 336)),
    "ILI": (7, 36, (60,)),
    "Traffic": (862, 96, (96, 192, 336, 720)),
    "Weather": (21, 96, (96, 192, 336, 720)),
}
# data set: channels, classes
CLASSIFICATIONS: dict[str, tuple[int, int]] = {
    "Heartbeat": (61, 2),
    "JapaneseVowels": (12, 9),
    "PEMS-SF": (963, 7),
    "SelfRegulationSCP2": (7, 2),
    "SpokenArabicDigits": (13, 10),
    "UWaveGestureLibrary": (3, 8),
    "ECG5000": (1, 5),
    "NonInvasiveFetalECGThorax1": (1, 52),
    "Blink": (4, 2),
    "FaceDetection": (144, 2),
    "ElectricDevices": (1, 7),
    "Trace": (1, 4),
    "FordB": (1, 2),
    "MotionSenseHAR": (12, 6),
    "EMOPain": (30, 3),
    "Chinatown": (1, 2),
    "MelbournePedestrian": (1, 10),
    "SharePriceIncrease": (1, 2),
}


def published(pretrain: bool) -> list[Task]:
    """The 38 tasks of the released models; pre-training sees context and horizon as one window."""
    kind = "pretrain_" if pretrain else ""
    tasks: list[Task] = []
    for dataset, (channels, lookback, horizons) in FORECASTS.items():
        for horizon in horizons:
            name = f"{'' if dataset == 'NN5' else 'LTF_'}{dataset}_p{horizon}"
            lengths = (lookback + horizon, 0) if pretrain else (lookback, horizon)
            settings = {
                "task_name": f"{kind}long_term_forecast",
                "dataset": dataset,
                "enc_in": channels,
                "seq_len": lengths[0],
                "pred_len": lengths[1],
            }
            tasks.append((name, settings))
    for dataset, (channels, classes) in CLASSIFICATIONS.items():
        settings = {
            "task_name": f"{kind}classification",
            "dataset": dataset,
            "enc_in": channels,
            "num_class": classes,
        }
        tasks.append((f"CLS_{dataset}", settings))
    return tasks


def token_shapes(
    tasks: list[Task], num_prompts: int, width: int, pretrain: bool
) -> dict[str, dict[str, tuple[int, int, int, int]]]:
    """Shapes [1, C, tokens, D] by family and name; prompts and masks are per data set."""
    shapes: dict[str, dict[str, tuple[int, int, int, int]]] = {
        "prompt_tokens": {},
        "mask_tokens": {},
        "cls_tokens": {},
        "category_tokens": {},
    }
    for name, task in tasks:
        channels, dataset = task["enc_in"], task["dataset"]
        if dataset not in shapes["prompt_tokens"]:  # the first task of a data set decides
            shapes["prompt_tokens"][dataset] = (1, channels, num_prompts, width)
            shapes["mask_tokens"][dataset] = (1, channels, 1, width)
        if task["task_name"] == "classification":
            shapes["category_tokens"][name] = (1, channels, task["num_class"], width)
        if pretrain or task["task_name"] == "classification":
            shapes["cls_tokens"][name] = (1, channels, 1, width)
    return shapes
