"""Oracle: the changes, added up in float64; numpy's singular values; the model it came from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from minisd.adapters import adapted, networks_of
from minisd.cli import main
from minisd.config import SD1, SDXL
from minisd.conversion import convert
from minisd.errors import CheckpointError, RequestError
from minisd.hashes import file_sha256
from minisd.lora_extract import extract
from minisd.lora_info import lora_info
from minisd.lora_merge import join
from minisd.lora_use import LoraUse
from minisd.lora_writing import lora_factors, truncated
from minisd.model import load_model
from minisd.weights_loader.checkpoint import open_checkpoint
from minisd.weights_loader.lora_file import Adapter, open_adapter
from minisd.weights_loader.lora_names import kohya_names, spellings
from tests import lora_files
from tests.tiny import TINY, write_checkpoint
from tests.weights_loader.manifests import manifest

CONFIG = TINY["sd1"]
[USE] = TINY["sd2-eps"].text
MODELS = {
    "sd1": CONFIG,
    # SD2 does not pool: its files hold no projection, or one that is not read
    "sd2": replace(TINY["sd2-eps"], text=(replace(USE, config=replace(USE.config, projection_dim=None)),)),
    "sdxl": TINY["sdxl"],
}


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors", MODELS[name])


def changes(path: Path, name: str) -> Adapter:
    return open_adapter(path, spellings(MODELS[name]))


def dense(adapter: Adapter, name: str, use: LoraUse | None = None) -> dict[str, Tensor]:
    """{module: change of the weight} in float64."""
    shapes = {(t.part, t.module): t.shape for t in spellings(MODELS[name]).values()}
    out = {}
    for (part, module), change in adapter.changes.items():
        factor = 1.0 if use is None else use.multiplier(part, module)
        if change.factors:
            zero = torch.zeros(shapes[part, module], dtype=torch.float64)
            out[f"{part}.{module}"] = factor * change.dense(zero)
    return out


def close(a: Tensor, b: Tensor, error: float) -> bool:
    return float((a - b).abs().max()) <= error * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize(
    "family,label", [(SD1, "kohya_sd15 (linear + 1x1, rank 64)"), (SDXL, "kohya_sdxl sgm")]
)
def test_names_are_kohya_s(family: object, label: str) -> None:
    """Oracle: the names in files that kohya's scripts wrote."""
    lists = manifest("adapters")
    [rows] = [lists[k] for k in lists if k.startswith(label) and "conv" not in k]
    wanted = {n.removesuffix(".lora_down.weight") for n in rows if n.endswith(".lora_down.weight")}
    made = set(kohya_names(family).values())  # type: ignore[arg-type]
    assert len(wanted) in (264, 986) and wanted <= made
    table = spellings(family)  # type: ignore[arg-type]
    assert all(table[n] == target for target, n in kohya_names(family).items())  # type: ignore[arg-type]


def test_merge_is_the_sum(name: str, tmp_path: Path) -> None:
    """Oracle: the weighted sum of the changes; float64 files, so that nothing is rounded."""
    one = lora_files.write(
        tmp_path / "one.safetensors", lora_files.kohya(MODELS[name], 1, dtype=torch.float64)
    )
    two = lora_files.write(tmp_path / "two.safetensors", lora_files.of_kind(MODELS[name], "locon_mid", 2))
    uses = [LoraUse(str(one), 0.7, 0.2, blocks=(("middle_block", 0.5),)), LoraUse(str(two), -1.5)]
    model = write_checkpoint(tmp_path / "m.safetensors", MODELS[name])
    made = join(uses, tmp_path / "sum.safetensors", model=model, dtype="float32")
    assert made.kept == 1.0 and made.ranks == (4, 6)
    got = dense(changes(made.path, name), name)
    parts = [dense(changes(p, name), name, use) for p, use in zip((one, two), uses, strict=True)]
    assert set(got) == set(parts[0]) | set(parts[1])
    for key, value in got.items():
        wanted = sum((p[key] for p in parts if key in p), torch.zeros_like(value))
        assert close(value, wanted, 1e-6)
    with open_checkpoint(made.path) as opened:
        told = opened.source.metadata
    recipe = json.loads(told["minisd.merge"])
    assert [row["name"] for row in recipe["loras"]] == ["one", "two"] and recipe["loras"][0]["te"] == 0.2
    assert told["ss_network_dim"] == "6" and told["modelspec.architecture"].endswith("/lora")


def test_merge_in_a_model_is_the_two(name: str, model: Path, tmp_path: Path) -> None:
    """Oracle: the model with both adapters, each with its biases and norms."""
    files = []
    for seed in (1, 2):
        tensors = lora_files.kohya(MODELS[name], seed)
        tensors |= {k: v.float() for k, v in biases(seed).items()}
        files.append(lora_files.write(tmp_path / f"{seed}.safetensors", tensors))
    uses = [LoraUse(str(files[0]), 0.8), LoraUse(str(files[1]), 0.4)]
    path = join(uses, tmp_path / "sum.safetensors", model=model).path
    loaded = load_model(model, device="cpu", dtype="float32")
    both = adapted(loaded, [(changes(Path(u.name), name), u) for u in uses])
    one = adapted(loaded, [(changes(path, name), LoraUse("sum"))])
    for part, network in networks_of(both).items():
        state = networks_of(one)[part].state_dict()
        for key, value in network.state_dict().items():
            assert close(state[key], value, 1e-6), key


def biases(seed: int) -> dict[str, Tensor]:
    draw, block = lora_files.drawing(seed, torch.float64), "lora_unet_mid_block_attentions_0"
    return {f"{block}_{k}": draw(64) for k in ("norm.w_norm", "norm.b_norm", "proj_in.diff_b")}


@pytest.mark.parametrize("kind", ["loha", "lokr", "loha_tucker", "full"])
def test_kinds_without_factors_need_a_rank(kind: str, tmp_path: Path) -> None:
    """Oracle: numpy's truncated decomposition of the sum; a rank as large as the matrix loses nothing."""
    other = lora_files.write(tmp_path / "other.safetensors", lora_files.of_kind(CONFIG, kind, 1))
    plain = lora_files.write(tmp_path / "plain.safetensors", lora_files.kohya(CONFIG, 2, dtype=torch.float64))
    model = write_checkpoint(tmp_path / "m.safetensors", CONFIG)
    with pytest.raises(RequestError, match="give a rank"):
        join([str(other), str(plain)], tmp_path / "x.safetensors", model=model)
    made = join(
        [str(other), f"{plain}:0.5"], tmp_path / "cut.safetensors", model=model, rank=5, dtype="float32"
    )
    assert made.ranks[1] == 5
    got = dense(changes(made.path, "sd1"), "sd1")
    a, b = dense(changes(other, "sd1"), "sd1"), dense(changes(plain, "sd1"), "sd1")
    energy = kept = 0.0
    for key, value in b.items():
        whole = (0.5 * value + a.get(key, 0.0)).flatten(1).numpy()
        u, s, v = np.linalg.svd(whole, full_matrices=False)
        best = (u[:, :5] * s[:5]) @ v[:5]
        assert np.abs(got[key].flatten(1).numpy() - best).max() <= 1e-5 * np.abs(whole).max()
        energy, kept = energy + (s**2).sum(), kept + (s[:5] ** 2).sum()
    assert made.kept == pytest.approx(kept / energy, abs=1e-9) and kept < energy
    full = join([str(other)], tmp_path / "all.safetensors", model=model, rank=4096, dtype="float32")
    assert full.kept > 1 - 1e-12
    got = dense(changes(full.path, "sd1"), "sd1")
    assert all(close(got[k], a[k], 1e-5) for k in a)


def test_cut_to_a_rank(tmp_path: Path) -> None:
    """Oracle: numpy's singular values: the share kept is theirs."""
    files = [
        lora_files.write(tmp_path / f"{s}.safetensors", lora_files.kohya(CONFIG, s, dtype=torch.float64))
        for s in (1, 2)
    ]
    model = write_checkpoint(tmp_path / "m.safetensors", CONFIG)
    made = join([str(f) for f in files], tmp_path / "cut.safetensors", model=model, rank=3, dtype="float32")
    sums = [dense(changes(f, "sd1"), "sd1") for f in files]
    whole = kept = 0.0
    for key, value in sums[0].items():
        s = np.linalg.svd((value + sums[1][key]).flatten(1).numpy(), compute_uv=False) ** 2
        whole, kept = whole + s.sum(), kept + s[:3].sum()
    assert made.kept == pytest.approx(kept / whole, abs=1e-9) and made.ranks == (3, 3)


def test_what_does_not_merge(tmp_path: Path) -> None:
    """Oracle: one sentence for each; nothing is written, no input touched."""
    model = write_checkpoint(tmp_path / "m.safetensors", CONFIG)
    plain = lora_files.write(tmp_path / "plain.safetensors", lora_files.kohya(CONFIG, 2))
    before = plain.read_bytes()
    out = tmp_path / "x.safetensors"
    for kind in ("dora", "oft"):
        bound = lora_files.write(tmp_path / f"{kind}.safetensors", lora_files.of_kind(CONFIG, kind))
        with pytest.raises(CheckpointError, match="depends on the model's weights; bake it"):
            join([str(bound)], out, model=model)
    with pytest.raises(RequestError, match="act in a part of the steps"):
        join([f"{plain}:1:end=0.5"], out, model=model)
    with pytest.raises(
        CheckpointError, match="not of one family: 'plain.safetensors' fits no published family"
    ):
        join([str(plain)], out)
    with pytest.raises(CheckpointError, match="'plain.safetensors' exists"):
        join([str(plain)], plain, model=model)
    with pytest.raises(CheckpointError, match="must end in .safetensors"):
        join([str(plain)], tmp_path / "x.ckpt", model=model)
    with pytest.raises(RequestError, match="rank is '0'"):
        join([str(plain)], out, model=model, rank=0)
    with pytest.raises(CheckpointError, match="not finite in float16"):
        large = {k: v * 1e7 for k, v in lora_files.kohya(CONFIG, 1).items() if "alpha" not in k}
        join(
            [str(lora_files.write(tmp_path / "large.safetensors", large))], out, model=model, dtype="float16"
        )
    words = [
        lora_files.write(
            tmp_path / f"w{n}.safetensors",
            lora_files.kohya(CONFIG, n) | {"bundle_emb.mug.emb_params": torch.ones(2, 32)},
        )
        for n in (1, 2)
    ]
    with pytest.raises(CheckpointError, match="bring the words 'mug'"):
        join([str(w) for w in words], out, model=model)
    assert not out.exists() and plain.read_bytes() == before
    join([str(words[0]), str(plain)], out, model=model)
    assert [e.name for e in changes(out, "sd1").embeddings] == ["mug"]


def test_extract_gives_back_a_lora(name: str, model: Path, tmp_path: Path) -> None:
    """Oracle: the LoRA that was baked in: a change of rank 4 is found whole, and gives the tuned model."""
    lora = lora_files.write(tmp_path / "film.safetensors", lora_files.kohya(MODELS[name], 1))
    tuned = convert(model, tmp_path / "tuned.safetensors", loras=[str(lora)])
    made = extract(tuned, model, tmp_path / "found.safetensors", rank=8, dtype="float32")
    assert made.left_out == 0 and made.absent == () and min(made.kept.values()) > 1 - 1e-6
    assert sum(made.modules.values()) == len(lora_files.layers(MODELS[name]))
    wanted, got = dense(changes(lora, name), name), dense(changes(made.path, name), name)
    assert wanted.keys() == got.keys()
    assert all(close(got[k], v, 1e-5) for k, v in wanted.items())
    again = convert(model, tmp_path / "again.safetensors", loras=[str(made.path)])
    with open_checkpoint(again) as a, open_checkpoint(tuned) as b:
        for part in a.parts:
            states = a.state_dict(part), b.state_dict(part)
            assert all(close(v, states[1][k], 1e-5) for k, v in states[0].items())


def test_extract_of_two_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: numpy's decomposition of every layer's difference: values, energy kept, what is left out."""
    a = write_checkpoint(tmp_path / "a.safetensors", CONFIG)
    b = write_checkpoint(tmp_path / "b.safetensors", CONFIG, seed=1)
    args = ["lora", "extract", str(a), str(b), "-o", str(tmp_path / "d.safetensors"), "--rank", "6"]
    assert main([*args, "--conv-rank", "3", "--dtype", "float32", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    got = dense(changes(tmp_path / "d.safetensors", "sd1"), "sd1")
    with open_checkpoint(a) as one, open_checkpoint(b) as two:
        states = {p: (one.state_dict(p), two.state_dict(p)) for p in ("unet", "text_encoder")}
        recipe = one.source.path and f"a.safetensors {file_sha256(a)} - b.safetensors {file_sha256(b)}"
    sums: dict[str, list[float]] = {}
    for target, _ in lora_files.layers(CONFIG):
        x, y = (s[f"{target.module}.weight"].double().flatten(1).numpy() for s in states[target.part])
        u, s, v = np.linalg.svd(x - y, full_matrices=False)
        rank = 3 if target.shape[2:] == (3, 3) else 6
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        made = got[f"{target.part}.{target.module}"].flatten(1).numpy()
        assert np.abs(made - best).max() <= 1e-5 * np.abs(best).max(), target
        total = sums.setdefault(target.part, [0.0, 0.0])
        total[0] += (s**2).sum()
        total[1] += (s[:rank] ** 2).sum()
    for part, (whole, kept) in sums.items():
        assert told["kept"][part] == pytest.approx(kept / whole, abs=1e-7)
    assert told["left_out"] > 50 and 0 < told["left_out_energy"] < 1
    with open_checkpoint(tmp_path / "d.safetensors") as opened:
        assert opened.source.metadata["minisd.extracted"] == recipe
    assert main(args) == 3  # it exists now
    whole = extract(a, b, tmp_path / "w.safetensors", rank=4096, whole=True, dtype="float32")
    assert whole.left_out == 2  # the tables of words and places
    assert convert(b, tmp_path / "again.safetensors", loras=[str(whole.path)]).exists()
    with open_checkpoint(tmp_path / "again.safetensors") as again:
        for key, value in again.state_dict("unet").items():
            assert close(value, states["unet"][0][key], 1e-5), key


def test_extract_refuses(tmp_path: Path) -> None:
    """Oracle: the reason; models that are the same give no file."""
    a, b = (write_checkpoint(tmp_path / f"{n}.safetensors", TINY[n]) for n in ("sd1", "sdxl"))
    wide = write_checkpoint(tmp_path / "wide.safetensors", TINY["sd1-inpaint"])
    out = tmp_path / "x.safetensors"
    for one, two, message in (
        (a, b, "one is SD1.x, the other SDXL"),
        (wide, a, "a LoRA changes no shapes"),
        (a, a, "there is no difference to write"),
    ):
        with pytest.raises(CheckpointError, match=message):
            extract(one, two, out)
    with pytest.raises(RequestError, match="conv_rank"):
        extract(a, a, out, conv_rank=0)
    assert not out.exists()


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (6, 6), (4, 1)])
def test_truncated(shape: tuple[int, int]) -> None:
    """Oracle: numpy's singular value decomposition, matrices of both kinds, one without full rank, zero."""
    matrix = np.random.default_rng(0).standard_normal(shape)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    for rank in range(1, len(s) + 2):
        up, down, whole, lost = truncated(torch.from_numpy(matrix), rank)
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        assert np.abs((up @ down).numpy() - best).max() < 1e-12
        assert whole == pytest.approx((s**2).sum()) and lost == pytest.approx(
            (s[rank:] ** 2).sum(), abs=1e-12
        )
    flat = np.outer(matrix[:, 0], matrix[0])
    up, down, _, lost = truncated(torch.from_numpy(flat), 4)
    assert up.shape[1] == 1 and np.abs((up @ down).numpy() - flat).max() < 1e-12
    up, down, whole, lost = truncated(torch.zeros(shape), 2)
    assert float((up @ down).abs().max()) == whole == lost == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rank", [301, 3001])
def test_alpha_is_the_rank(rank: int, dtype: torch.dtype) -> None:
    """Oracle: the rank, which neither 16-bit format holds exactly."""
    factors = lora_factors(torch.zeros(1, rank), torch.zeros(rank, 1), (1, 1), dtype)
    assert float(factors["alpha"]) == rank and factors["lora_up.weight"].dtype == dtype


def test_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the numbers by hand: norms of the dense changes, ranks, scales, digests, the file's words."""
    tensors = lora_files.kohya(CONFIG, 1) | {"bundle_emb.mug.emb_params": torch.ones(2, 32)}
    told = {"ss_num_train_images": "30", "ss_steps": "100\x1b[31m", "other": "x"}
    path = lora_files.write(tmp_path / "film.safetensors", tensors, told)
    model = write_checkpoint(tmp_path / "m.safetensors", CONFIG)
    info = lora_info(path, model)
    count = len(lora_files.layers(CONFIG))
    adapter = changes(path, "sd1")
    assert info["report"] == adapter.report and info["kinds"] == {"lora": count}
    assert info["ranks"] == {4: count} and info["scales"] == {0.5: count}
    assert info["sha256"] == file_sha256(path) and info["tensors_sha256"] == adapter.sha256
    assert info["training"] == {"images": "30", "steps": "100\x1b[31m"} and info["embeddings"] == ["mug"]
    values = dense(adapter, "sd1")
    for part in ("unet", "text_encoder"):
        mine = {k: float(v.norm()) for k, v in values.items() if k.startswith(f"{part}.")}
        row = info["parts"][part]  # type: ignore[index]
        assert row["norm"] == pytest.approx(sum(v**2 for v in mine.values()) ** 0.5, rel=1e-6)
        assert f"{part}.{row['largest']['module']}" == max(mine, key=lambda k: mine[k])
    assert main(["lora", "info", str(path), "-m", str(model)]) == 0
    out = capsys.readouterr().out
    assert f"applied {count}/{count} modules" in out and "\x1b" not in out and "images" in out
    bound = lora_files.write(tmp_path / "d.safetensors", lora_files.of_kind(CONFIG, "dora"))
    assert lora_info(bound, model)["parts"]["unet"]["norm"] is None  # type: ignore[index]
    assert main(["lora", "info", str(path)]) == 3
    assert "make no change of" in capsys.readouterr().err
    assert main(["lora", "info", str(model)]) == 3
    assert "expected a LoRA" in capsys.readouterr().err


def test_info_of_a_published_file(tmp_path: Path) -> None:
    """Oracle: 264 modules of kohya's list for SD1, here with rank 1."""
    rows = manifest("adapters")["kohya_sd15 (linear + 1x1, rank 64)"]
    tensors = {}
    for key, (_, *shape) in rows.items():
        short = [1 if n == 64 and axis == ("lora_up" in key) else n for axis, n in enumerate(shape)]
        tensors[key] = torch.ones(short)
    info = lora_info(lora_files.write(tmp_path / "style.safetensors", tensors))
    assert info["fits"] == ["sd1"]
    assert info["report"] == "applied 264/264 modules: 192 unet, 72 text_encoder (lora)"
