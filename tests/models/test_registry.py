"""Names, presets, `load`, `create`, `describe`: what users call, and their errors."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sffbench import models
from sffbench.errors import InputError
from sffbench.models import checkpoint
from sffbench.models.base import LTSM

GOLDEN = Path(__file__).parents[1] / "golden"
PRESETS = [f"{name}:{preset}" for name in models.names() for preset in models.get(name).presets]
TINY = [f"{name}:tiny" for name in models.names()]
PACKAGED = [name for name in TINY if (checkpoint.PACKAGED / name.replace(":", "-")).is_dir()]
FOLDERS = [
    ("chronos", "chronos-2"),
    ("chronos", "chronos-bolt"),
    ("chronos", "chronos-t5"),
    ("moirai", "moirai"),
    ("moirai", "moirai2"),
    ("moment", "moment"),
    ("sundial", "sundial"),
    ("timer", "timer"),
    ("timer", "timer_legacy"),
    ("timesfm", "timesfm-1.0"),
    ("timesfm", "timesfm-2.0"),
    ("timesfm", "timesfm-2.5"),
    ("ttm", "ttm"),
    ("ttm", "ttm-freq"),
    ("ttm", "ttm-mix"),
    ("units", "units"),
    ("units", "units_pretrain"),
    ("units", "units_zeroshot"),
]


def copied(folder: Path, target: Path, **changes: object) -> Path:
    """The golden folder with some config fields changed."""
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    save_file(load_file(folder / "model.safetensors"), target / "model.safetensors")
    return target


def test_names_lists_the_models_of_this_package():
    own = {"chronos", "moirai", "moment", "sundial", "timer", "timesfm", "ttm", "units"}
    assert own <= set(models.names())
    assert models.names() == sorted(models.names())


def test_importing_describing_and_listing_names_loads_no_torch():
    code = (
        "import sys, sffbench.models as m; m.names(); m.describe('ttm:tiny'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_its_published_number_of_parameters(name):
    preset = models.preset(name)
    cls = models.get(name).variant(preset.config)
    with torch.device("meta"):
        model = cls(preset.config, lookback=preset.lookback, horizon=preset.horizon)
    assert sum(p.numel() for p in model.parameters()) == preset.num_parameters


def published(folder: str) -> dict[str, dict[str, object]]:
    sizes: dict[str, dict[str, object]] = json.loads(
        (GOLDEN / folder / "published_shapes.json").read_text()
    )
    return sizes


BOLT = ["tiny", "mini", "small", "base"]
PUBLISHED = {
    **{
        f"ttm:{model}-{size}": ("ttm", f"ttm-{model}{'-freq' * (model == 'research-r2')}@{branch}")
        for model, size, branch in [
            ("r1", "512-96", "main(512-96)"),
            ("r1", "1024-96", "1024_96_v1"),
            *(
                ("r2", f"{lookback}-{horizon}", f"{lookback}-{horizon}-r2")
                for lookback in (512, 1024, 1536)
                for horizon in (96, 192, 336, 720)
            ),
            *(
                ("research-r2", f"{lookback}-96", f"{lookback}-96")
                for lookback in (512, 1024, 1536)
            ),
        ]
    },
    "timer:base-84m": ("timer", "thuml/timer-base-84m"),
    "timer:1.0": ("timer_legacy", "Timer_forecast_1.0.ckpt"),
    "timer:1.0-imputation": ("timer_legacy", "Timer_imputation_1.0.ckpt"),
    "timer:1.0-anomaly": ("timer_legacy", "Timer_anomaly_detection_1.0.ckpt"),
    **{
        f"chronos:{family}-{size}": (f"chronos-{family}", f"amazon/chronos-{family}-{size}")
        for family, sizes in (("bolt", BOLT), ("t5", [*BOLT, "large"]))
        for size in sizes
    },
    "chronos:2": ("chronos-2", "amazon/chronos-2"),
    **{
        f"moment:{size}": ("moment", f"AutonLab/MOMENT-1-{size}")
        for size in ("small", "base", "large")
    },
    **{
        f"timesfm:{size}": ("timesfm-2.0", f"google/timesfm-{size}-pytorch")
        for size in ("1.0-200m", "2.0-500m")
    },
    "timesfm:2.5-200m": ("timesfm-2.5", "google/timesfm-2.5-200m-pytorch"),
    "sundial:base-128m": ("sundial", "thuml/sundial-base-128m"),
    **{
        f"moirai:1.1-{size}": ("moirai", f"Salesforce/moirai-1.1-R-{size}")
        for size in ("small", "base", "large")
    },
    "moirai:2.0-small": ("moirai2", "Salesforce/moirai-2.0-R-small"),
    "units:x32": ("units", "UniTS_pretrain_x32"),
    "units:x64": ("units", "UniTS_pretrain_x64"),
    "units:x128": ("units", "UniTS_pretrain_x128 (pretrain_checkpoint.pth)"),
    "units:x64-supervised": ("units", "UniTS_supervised_x64"),
    "units:x128-prompt": ("units", "UniTS_x128 prompt-tuned (ptune_checkpoint.pth)"),
    "units:x64-zeroshot": ("units", "UniTS_zeroshot pretrain x64"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_keys_and_shapes_of_the_published_checkpoint(name):
    folder, key = PUBLISHED[name]
    entry = published(folder)[key]
    shapes = entry.get("shapes") or {k: v["shape"] for k, v in entry["keys"].items()}
    preset = models.preset(name)
    with torch.device("meta"):
        model = models.get(name).variant(preset.config)(preset.config)
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == shapes


def test_every_published_preset_is_compared_with_its_checkpoint():
    assert set(PRESETS) - set(PUBLISHED) == set(TINY)


@pytest.mark.parametrize(("name", "folder"), FOLDERS)
def test_a_state_dict_survives_saving_and_loading(name, folder, tmp_path):
    original = load_file(GOLDEN / folder / "model.safetensors")
    state = models.load(name, GOLDEN / folder).state_dict()
    assert state.keys() == original.keys()
    assert all(torch.equal(state[key], original[key]) for key in original)


def test_the_first_two_models_have_packaged_weights():
    assert {"timer:tiny", "ttm:tiny"} <= set(PACKAGED)


@pytest.mark.parametrize("name", PACKAGED)
def test_tiny_weights_of_the_package_load_and_are_below_a_megabyte(name):
    model = models.load(name)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    folder = checkpoint.find(*models.parse(name), None)
    assert (folder / "model.safetensors").stat().st_size < 1_000_000


@pytest.mark.parametrize("name", [*TINY, "timer:1.0-imputation"])
def test_created_weights_depend_on_the_seed_alone(name):
    first, again, other = (models.create(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    assert all(tensor.isfinite().all() for tensor in first.values())


@pytest.mark.parametrize("name", [*TINY, "timer:1.0-imputation"])
def test_initial_names_every_parameter_once(name):
    model = models.create(name)
    assert list(model.initial()) == [key for key, _ in model.named_parameters()]
    assert any(key.startswith(model.head_prefixes) for key in model.initial())


def test_initial_of_ttm_is_what_torch_itself_draws():
    model = models.create("ttm:tiny", seed=0)
    torch.manual_seed(0)
    preset = models.preset("ttm:tiny")
    own = dict(models.get("ttm")(preset.config).named_parameters())
    for name, created in model.named_parameters():
        same_law(name, created.detach(), own[name].detach())


def test_initial_of_timer_1_0_is_what_torch_itself_draws():
    model = models.create("timer:1.0-imputation", seed=0)
    torch.manual_seed(0)
    preset = models.preset("timer:1.0-imputation")
    own = dict(models.get("timer").variant(preset.config)(preset.config).named_parameters())
    for name, created in model.named_parameters():
        same_law(name, created.detach(), own[name].detach())


def same_law(name: str, created: torch.Tensor, reference: torch.Tensor) -> None:
    """Equal where constant; else two-sample Kolmogorov distance below its 1e-6 quantile."""
    assert (created.unique().numel() == 1) == (reference.unique().numel() == 1), name
    if reference.unique().numel() == 1:
        assert torch.equal(created, reference), name
        return
    num = reference.numel()
    grid = torch.cat([created.flatten(), reference.flatten()]).sort().values
    below = [
        torch.searchsorted(t.flatten().sort().values, grid) / num for t in (created, reference)
    ]
    assert (below[0] - below[1]).abs().max() < 2.7 * (2 / num) ** 0.5, name


def test_initial_of_timer_is_normal_with_the_configured_spread():
    model = models.create("timer:tiny", seed=0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            error = 5 * 0.02 / (2 * parameter.numel()) ** 0.5
            assert parameter.std().item() == pytest.approx(0.02, abs=error), name
            assert abs(parameter.mean().item()) < 5 * 0.02 / parameter.numel() ** 0.5
        else:
            norm_gain = "norm" in name and name.endswith("weight")
            assert parameter.unique().tolist() == [1.0 if norm_gain else 0.0], name


def test_describe_hashes_the_config_and_the_bytes_of_the_weights():
    folder = GOLDEN / "ttm"
    config, weights = models.describe("ttm", folder)
    assert weights == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    parsed = json.loads((folder / "config.json").read_text())
    canonical = json.dumps(parsed, sort_keys=True, separators=(",", ":"))
    assert config == hashlib.sha256(canonical.encode()).hexdigest()


def test_shards_listed_in_an_index_are_read_like_one_file(tmp_path):
    state = load_file(GOLDEN / "ttm" / "model.safetensors")
    copied(GOLDEN / "ttm", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names = list(state)
    parts = {"a.safetensors": names[:50], "b.safetensors": names[50:]}
    for file, keys in parts.items():
        save_file({key: state[key] for key in keys}, tmp_path / file)
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    past = torch.randn(1, 1, 32)
    whole = models.load("ttm", GOLDEN / "ttm").forecast(past, 12)
    assert torch.equal(models.load("ttm", tmp_path).forecast(past, 12), whole)


def test_tiny_weights_that_are_not_packaged_are_made_with_pretrain(tmp_path, monkeypatch):
    monkeypatch.delenv("SFFBENCH_CHECKPOINTS", raising=False)
    monkeypatch.setenv("SFFBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(checkpoint, "PACKAGED", tmp_path)
    with pytest.raises(InputError) as caught:
        models.load("ttm:tiny")
    assert str(caught.value) == (
        "no weights of ttm:tiny in this package yet: make them with `sffbench pretrain ttm:tiny`"
    )


def test_a_folder_of_weights_alone_has_the_config_of_the_named_preset(tmp_path):
    whole = checkpoint.PACKAGED / "ttm-tiny"
    weights = (whole / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    past = torch.randn(1, 1, 512)
    expected = models.load("ttm:tiny").forecast(past, 96)
    assert torch.equal(models.load("ttm:tiny", tmp_path).forecast(past, 96), expected)
    canonical = json.dumps(
        models.preset("ttm:tiny").config, sort_keys=True, separators=(",", ":")
    ).encode()
    digests = tuple(hashlib.sha256(part).hexdigest() for part in (canonical, weights))
    assert models.describe("ttm:tiny", tmp_path) == digests


def test_fetched_weights_are_found_in_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SFFBENCH_CHECKPOINTS", raising=False)
    monkeypatch.setenv("SFFBENCH_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"run `sffbench fetch ttm:r2-512-96`"):
        models.load("ttm:r2-512-96")
    folder = tmp_path / "models" / "ttm-r2-512-96"
    folder.mkdir(parents=True)
    copied(GOLDEN / "ttm", folder)
    with pytest.raises(InputError, match=r"no ttm:r2-512-96: context_length is 32, not 512"):
        models.load("ttm:r2-512-96")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tmt", "unknown model 'tmt'; did you mean 'ttm'?"),
        ("ttm:tny", "unknown preset of ttm 'tny'; did you mean 'tiny'?"),
        ("ttm", "needs a checkpoint folder or a preset"),
    ],
)
def test_a_misspelt_or_incomplete_name_is_one_clear_line(name, message):
    with pytest.raises(InputError) as caught:
        models.load(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_option_names_the_allowed_ones():
    with pytest.raises(InputError, match="did you mean 'head_dropout'"):
        models.load("ttm", GOLDEN / "ttm", head_dropuot=0.1)
    with pytest.raises(InputError, match="did you mean 'd_model'"):
        models.create("ttm:tiny", d_modle=3)


def test_keys_that_do_not_fit_are_named_a_few_then_counted(tmp_path):
    copied(GOLDEN / "ttm", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    gone = [key for key in state if key.endswith("fc1.bias")]
    for key in gone:
        del state[key]
    state["foreign.weight"] = torch.zeros(3)
    state["head.base_forecast_block.bias"] = torch.zeros(13)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as caught:
        models.load("ttm", tmp_path)
    message = str(caught.value)
    assert f"and {len(gone) - 3} more" in message
    assert "unexpected foreign.weight" in message
    assert "head.base_forecast_block.bias (13,) instead of (12,)" in message


def test_truncated_and_foreign_weights_are_one_line(tmp_path):
    copied(GOLDEN / "ttm", tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for content in (whole[:-100], whole[:20], b"", b"PK\x03\x04 a zip archive, say"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="truncated or no ") as caught:
            models.load("ttm", tmp_path)
        assert "\n" not in str(caught.value)


def test_a_folder_without_config_or_weights_says_which(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        models.load("ttm", tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        models.load("ttm", tmp_path)
    (tmp_path / "config.json").write_text((GOLDEN / "ttm" / "config.json").read_text())
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        models.load("ttm", tmp_path)
    with pytest.raises(InputError, match="no checkpoint folder"):
        models.load("ttm", tmp_path / "absent")


@pytest.mark.parametrize("folder", ["ttm", "timer"])
def test_the_config_of_another_model_is_refused(folder):
    other = {"ttm": "timer", "timer": "ttm"}[folder]
    with pytest.raises(InputError, match=f"{other}: config.json lacks"):
        models.load(other, GOLDEN / folder)


def test_half_precision_weights_are_read_as_float32(tmp_path):
    copied(GOLDEN / "timer", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({k: v.bfloat16() for k, v in state.items()}, tmp_path / "model.safetensors")
    model = models.load("timer", tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_subclass_from_outside_registers_itself_and_a_second_of_its_name_is_refused():
    class Outside(LTSM):
        name = "outside"

    try:
        assert models.get("outside") is Outside
        assert "outside" in models.names()
        with pytest.raises(InputError, match="already defined"):
            type("Another", (LTSM,), {"name": "outside"})
    finally:
        from sffbench.models.base import REGISTRY

        del REGISTRY["outside"]
