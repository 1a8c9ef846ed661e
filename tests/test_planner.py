"""Oracle: tables of budgets and what must come of them; and bytes counted as tensors live and die."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Unpack

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from minisd.config import FAMILIES, ModelConfig
from minisd.errors import PlanError
from minisd.executor import Executor
from minisd.models.clip import TextEncoder
from minisd.models.unet import UNet
from minisd.models.vae import AutoencoderKL
from minisd.placement import Plan
from minisd.plan_devices import DeviceFacts, parse_bytes
from minisd.planner import RUNGS, Sizes, choose
from minisd.residency import all_tensors, pieces
from minisd.weights_loader.expected import text_shapes, unet_shapes, vae_shapes
from minisd.wishes import Named, Wishes
from tests.tiny import TINY

GB = 10**9


def facts(free: int | None, *, bf16: bool = True, host: bool = True, base: int = 0) -> DeviceFacts:
    return DeviceFacts("cpu", free, base, bf16, "it says so", fp8=False, host=host, reorders=False)


def elements(config: ModelConfig) -> dict[str, int]:
    shapes = {use.part: text_shapes(use.config) for use in config.text}
    shapes |= {"unet": unet_shapes(config.unet), "vae": vae_shapes(config.vae)}
    return {part: sum(torch.Size(s).numel() for s in of.values()) for part, of in shapes.items()}


def chosen(
    family: str,
    size: int,
    *,
    free: int | None = None,
    bf16: bool = True,
    base: int = 0,
    **named: Unpack[Named],
) -> Plan:
    config = FAMILIES[family]
    sizes = Sizes(size // 8, size // 8, 1, guided=True)
    wishes = Wishes(**named)
    return choose(config, elements(config), sizes, wishes, {"cpu": facts(free, bf16=bf16, base=base)})


@pytest.mark.parametrize(
    ("family", "size", "memory", "rung", "dtype"),
    [
        ("sd1", 512, "8GB", "none", torch.bfloat16),
        ("sd1", 512, "4GB", "none", torch.bfloat16),
        ("sd1", 512, "2GB", "staged", torch.bfloat16),
        ("sd1", 512, "1GB", "streamed", torch.bfloat16),
        ("sd1", 512, "500MB", "disk", torch.bfloat16),
        ("sdxl", 1024, "20GB", "none", torch.bfloat16),
        ("sdxl", 1024, "10GB", "none", torch.bfloat16),
        ("sdxl", 1024, "6GB", "staged", torch.bfloat16),
        ("sdxl", 1024, "3GB", "streamed", torch.bfloat16),
    ],
)
def test_the_fastest_rung_that_fits(
    family: str, size: int, memory: str, rung: str, dtype: torch.dtype
) -> None:
    """Oracle: the table above; what fits is never moved, and every choice has its reason."""
    plan = chosen(family, size, memory=memory)
    assert (plan.rung.value, plan.part("unet").dtype.value) == (rung, dtype)
    assert 0 < plan.peak <= parse_bytes(memory) and len(plan.stages) == 3
    assert all(p.dtype.reason and p.residency.reason for p in plan.parts)
    if rung == "none":
        assert {p.residency.value for p in plan.parts} == {"resident"}
    text = str(plan)
    assert all(word in text for word in (rung, "encode", "sample", "decode", "asked for by name"))
    assert rung == "disk" or "next on the ladder" in plan.rung.reason


def test_without_bfloat16_a_cpu_stays_in_float32() -> None:
    """Oracle: the dtype of every part on every rung."""
    for memory in ("8GB", "4GB", "2GB", "900MB"):
        plan = chosen("sd1", 512, memory=memory, bf16=False)
        assert {p.dtype.value for p in plan.parts} == {torch.float32}


def test_a_small_model_is_exact_where_it_fits_and_a_large_one_fast() -> None:
    """Oracle: the dtype on a CPU with bfloat16, with the reason; a name given goes before it."""
    config, sizes, facts_of = FAMILIES["sd1"], Sizes(64, 64, 1, guided=True), {"cpu": facts(None)}
    few = dict.fromkeys(elements(config), 10**6)

    def told(parts: dict[str, int], memory: str, **named: Unpack[Named]) -> list[tuple[torch.dtype, str]]:
        plan = choose(config, parts, sizes, Wishes(memory=memory, **named), facts_of)
        return [(p.dtype.value, p.dtype.reason) for p in plan.parts]

    assert {d for d, _ in told(few, "8GB")} == {torch.float32}
    small = choose(config, few, sizes, Wishes(memory="8GB"), facts_of).peak - 10**6
    assert {d for d, _ in told(few, str(small))} == {torch.bfloat16}
    assert all("float32 does not fit" in why for _, why in told(few, str(small)))
    assert {d for d, _ in told(elements(config), "8GB")} == {torch.bfloat16}
    assert all("as fast as float32" in why for _, why in told(elements(config), "8GB"))
    assert {d for d, _ in told(elements(config), "8GB", dtype="float32")} == {torch.float32}
    mixed = told(elements(config), "8GB", vae_dtype="float32")
    assert [d for d, _ in mixed] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert mixed[2][1] == "asked for by name"


def test_tiles_only_when_nothing_fits_without() -> None:
    """Oracle: memory below what decoding whole takes on the lowest rung, and above it."""
    whole = chosen("sdxl", 1024, offload="disk", dtype="bfloat16")
    assert whole.vae_tile.value is None
    above = chosen("sdxl", 1024, memory=whole.peak + 10**6, dtype="bfloat16")
    below = chosen("sdxl", 1024, memory=whole.peak - 10**6, dtype="bfloat16")
    assert above.vae_tile.value is None and above.rung.value == "disk"
    assert below.vae_tile.value is not None and "does not fit" in below.vae_tile.reason
    assert below.peak <= whole.peak - 10**6


def test_what_does_not_fit_says_what_would() -> None:
    """Oracle: a second plan with the number that the message names."""
    with pytest.raises(PlanError, match=r"at least 0\.\d\d GB.*allow that much") as caught:
        chosen("sd1", 512, memory="60MB")
    named = float(str(caught.value).split("at least ")[1].split(" GB")[0])
    assert chosen("sd1", 512, memory=round((named + 0.01) * GB)).rung.value == "disk"


def test_by_name_or_not_at_all() -> None:
    """Oracle: what was named, or PlanError with its name."""
    for offload in RUNGS:
        plan = chosen("sd1", 512, offload=offload, dtype="bfloat16")
        assert plan.rung.value == offload and "by name" in plan.part("unet").residency.reason
    with pytest.raises(PlanError, match="offload none needs more"):
        chosen("sd1", 512, offload="none", memory="1GB")
    with pytest.raises(PlanError, match="offload 'most'"):
        chosen("sd1", 512, offload="most")
    with pytest.raises(PlanError, match="'6 apples'"):
        chosen("sd1", 512, memory="6 apples")
    with pytest.raises(PlanError, match="cfg 'both'"):
        chosen("sd1", 512, cfg="both")
    mixed = chosen("sd1", 512, unet_dtype="bfloat16", text_dtype="float32", vae_dtype="float64", memory="8GB")
    assert [p.dtype.value for p in mixed.parts] == [torch.float32, torch.bfloat16, torch.float64]
    free = chosen("sd1", 512, free=3 * GB)
    assert free.memory.value == 2_850_000_000 and "free on cpu" in free.memory.reason


def test_every_field_of_wishes_is_a_keyword() -> None:
    """Oracle: equality of the two lists of names."""
    assert set(Named.__annotations__) == set(Wishes.__dataclass_fields__)


@pytest.mark.parametrize("name", TINY)
def test_every_tensor_is_in_one_piece(name: str) -> None:
    """Oracle: the networks' own lists of parameters and buffers."""
    config = TINY[name]
    with torch.device("meta"):
        networks: list[nn.Module] = [UNet(config.unet), AutoencoderKL(config.vae)]
        networks += [TextEncoder(use.config) for use in config.text]
    for network in networks:
        listed = [t for piece in pieces(network) for t in piece.tensors]
        assert sorted(listed) == sorted(all_tensors(network)) and len(set(listed)) == len(listed)


class Allocator(TorchDispatchMode):
    """Counts the bytes of every tensor storage from its making to its end, as a device's allocator would."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                self.count(tensor)
        return out

    def count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.gone, key, size)

    def gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


def without_scores(q: Tensor, *_: object, **__: object) -> Tensor:
    """A fused attention: its output and nothing else."""
    b, h, n, d = q.shape
    return q.new_empty(b, n, h, d).transpose(1, 2)


class AtOnce:
    """In place of a thread: what is sent for is there before anything else happens, the worst for memory."""

    def __init__(self, *_: object) -> None: ...

    def submit(self, make: Callable[[], object]) -> Future[object]:
        done: Future[object] = Future()
        done.set_result(make())
        return done

    def shutdown(self) -> None: ...


def counted(plan: Plan, config: ModelConfig, size: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Peaks of the three stages on a device that computes nothing and counts everything."""
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", without_scores)
    monkeypatch.setattr("minisd.executor.ThreadPoolExecutor", AtOnce)
    with torch.device("meta"):
        networks: dict[str, nn.Module] = {use.part: TextEncoder(use.config) for use in config.text}
        networks |= {"unet": UNet(config.unet), "vae": AutoencoderKL(config.vae)}
    executor = Executor()
    peaks = {}
    with torch.inference_mode(), Allocator() as allocator, executor.busy():
        for part, network in networks.items():
            network.requires_grad_(False)
            own, shapes = plan.part(part), {n: t.shape for n, t in all_tensors(network).items()}
            dtype = own.dtype.value

            def fresh(
                names: tuple[str, ...], shapes: dict[str, torch.Size] = shapes, dtype: torch.dtype = dtype
            ) -> dict[str, Tensor]:
                return {n: torch.empty(shapes[n], dtype=dtype, device="meta") for n in names}

            if own.residency.value == "resident":
                network.load_state_dict(fresh(tuple(shapes)), assign=True)
            else:
                executor.manage(part, network, own.residency.value, fresh)

        def encode() -> None:
            for use in config.text:
                row = torch.empty(1, 77, dtype=torch.int64, device="meta")
                networks[use.part](row, final_norm=use.final_norm, pooled=use.pooled)

        def sample() -> None:
            dtype, unet = plan.part("unet").dtype.value, config.unet
            y = None if unet.y_dim is None else torch.empty(1, unet.y_dim, dtype=dtype, device="meta")
            context = torch.empty(1, 77, unet.context_dim, dtype=dtype, device="meta")
            x = torch.empty(1, unet.in_channels, size // 8, size // 8, dtype=dtype, device="meta")
            networks["unet"](x, torch.empty(1, device="meta"), context, y)

        def decode() -> None:
            dtype, vae = plan.part("vae").dtype.value, networks["vae"]
            assert isinstance(vae, AutoencoderKL)
            vae.decode(torch.empty(1, 4, size // 8, size // 8, dtype=dtype, device="meta"))

        for stage, run in (("encode", encode), ("sample", sample), ("decode", decode)):
            run()  # the order of pieces is learnt
            allocator.peak = allocator.live
            run()
            peaks[stage] = allocator.peak
    executor.close()
    return peaks


@pytest.mark.parametrize(
    ("family", "size", "offload"),
    [*(("sd1", 512, rung) for rung in RUNGS), ("sd2", 768, "streamed"), ("sdxl", 1024, "streamed")],
)
def test_what_is_predicted_is_what_is_counted(
    family: str, size: int, offload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: an allocator that counts storages while the executor moves weights of full size. Within 5 % of
    the budget the plan was given, and never above it."""
    plan = chosen(family, size, offload=offload, dtype="bfloat16")
    plan = chosen(family, size, offload=offload, dtype="bfloat16", memory=plan.peak)
    peaks = counted(plan, FAMILIES[family], size, monkeypatch)
    for stage in plan.stages:
        # the smaller stages are read off finer than the whole is large
        assert abs(stage.peak - peaks[stage.stage]) <= 0.05 * plan.peak, (stage, peaks)
    assert plan.memory.value is not None and max(peaks.values()) <= plan.memory.value
    assert abs(plan.peak - max(peaks.values())) <= 0.05 * plan.peak
