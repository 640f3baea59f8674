"""The labelled equations of `speed`, each evaluated as written and against another route."""

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vaelib import elbo
from vaelib.training import seeded_vae


def counted(work) -> int:
    """Operations that torch counts while ``work`` runs."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.equation("eq-speed-product")
def test_a_product_has_two_operations_for_each_multiply_add():
    B, m, n = 3, 5, 7
    x, w = torch.rand(B, m).tolist(), torch.rand(m, n).tolist()
    operations = 0
    out = [[0.0] * n for _ in range(B)]
    for b in range(B):
        for j in range(n):
            for i in range(m):
                out[b][j] += x[b][i] * w[i][j]
                operations += 2
    assert torch.allclose(torch.tensor(out), torch.tensor(x) @ torch.tensor(w))
    assert operations == 2 * B * m * n == counted(lambda: torch.rand(B, m) @ torch.rand(m, n))


@pytest.mark.equation("eq-speed-step")
@pytest.mark.parametrize(("B", "D", "H", "L"), [(4, 9, 5, 2), (1, 784, 30, 7), (6, 3, 11, 13)])
def test_operations_of_a_step_as_written_are_counted_by_torch(B, D, H, L):
    model, x = seeded_vae(0, data_dim=D, hidden_dim=H, latent_dim=L), torch.rand(B, D).round()
    written = 2 * 2 * B * D * H + 3 * 2 * 2 * B * H * L + 3 * 2 * B * L * H + 3 * 2 * B * H * D
    assert written == 2 * B * (5 * D * H + 9 * H * L)
    assert written == counted(lambda: (-elbo(model, x).value.mean()).backward())
    # the product that the first layer skips: with a gradient for the images it is executed
    x.requires_grad_()
    full = counted(lambda: model.encoder(x)[0].sum().backward())
    x.requires_grad_(False)
    assert full - counted(lambda: model.encoder(x)[0].sum().backward()) == 2 * B * D * H


def simulated_time(arithmetic: list[float], traffic: list[float], overlap: bool) -> float:
    """A machine that computes block by block; a block's data arrive before it is computed.

    With ``overlap`` the next blocks are fetched meanwhile, otherwise after it.
    """
    arrived = computed = 0.0
    for compute, fetch in zip(arithmetic, traffic):
        arrived = (arrived if overlap else max(arrived, computed)) + fetch
        computed = max(computed, arrived) + compute
    return computed


@pytest.mark.equation("eq-speed-roofline")
@pytest.mark.parametrize("overlap", [True, False])
def test_a_machine_with_two_units_stays_between_the_bounds_of_the_roofline(overlap):
    generator = random.Random(0)
    for _ in range(200):
        blocks, scale = generator.randint(1, 50), 10 ** generator.uniform(-2, 2)
        arithmetic = [generator.random() for _ in range(blocks)]  # F / P of each block
        traffic = [scale * generator.random() for _ in range(blocks)]  # M / W of each block
        larger, both = max(sum(arithmetic), sum(traffic)), sum(arithmetic) + sum(traffic)
        time = simulated_time(arithmetic, traffic, overlap)
        assert larger <= time * (1 + 1e-12) and time <= both * (1 + 1e-12)
        assert both <= 2 * larger
        if not overlap:
            assert time == pytest.approx(both)


def test_perfect_overlap_of_many_blocks_reaches_the_roof():
    for fetch in (0.2, 5.0):
        time = simulated_time([1.0] * 1000, [fetch] * 1000, overlap=True)
        assert time == pytest.approx(1000 * max(1.0, fetch), rel=0.01)


@pytest.mark.equation("eq-speed-intensity")
@pytest.mark.parametrize(("B", "D", "H"), [(128, 784, 400), (1, 784, 400), (5, 3, 2)])
def test_intensity_is_operations_over_the_bytes_of_three_matrices(B, D, H):
    x, w = torch.rand(B, D), torch.rand(D, H)
    moved = sum(tensor.nbytes for tensor in (x, w, x @ w))
    written = 2 * B * D * H / (4 * (B * D + D * H + B * H))
    assert written == pytest.approx(counted(lambda: x @ w) / moved, rel=1e-12)
    assert written < B / 2  # each weight serves B images


@pytest.mark.equation("eq-speed-adam")
def test_adam_reads_four_numbers_and_writes_three_for_each_weight():
    """What a step reads is what its result depends on; what it writes is what it changes."""

    def step(changed: str | None) -> dict[str, torch.Tensor]:
        w = torch.zeros(10, requires_grad=True)
        w.grad = torch.ones(10)
        optimizer = torch.optim.Adam([w], fused=True)
        optimizer.step()
        state = optimizer.state[w]
        arrays = {"w": w.detach(), "g": w.grad, "m": state["exp_avg"], "v": state["exp_avg_sq"]}
        if changed:
            arrays[changed] += 0.5
        before = {name: array.clone() for name, array in arrays.items()}
        optimizer.step()
        written.update(n for n in arrays if not torch.equal(before[n], arrays[n]))
        return {name: array.clone() for name, array in arrays.items()}

    written: set[str] = set()
    plain = step(None)
    read = {name for name in plain if not torch.equal(step(name)["w"], plain["w"])}
    assert read == {"w", "g", "m", "v"} and written == {"w", "m", "v"}
    assert (len(read) + len(written)) * torch.zeros(1).nbytes == 28


@pytest.mark.equation("eq-speed-amdahl")
def test_a_faster_part_speeds_the_whole_up_by_amdahls_factor():
    parts = {"products": 1.3, "adam": 0.3, "rest": 0.9}
    before = sum(parts.values())
    for name, seconds in parts.items():
        p = seconds / before
        for s in (0.5, 2.0, 10.0, 1e9):
            after = sum((parts | {name: seconds / s}).values())
            assert 1 / ((1 - p) + p / s) == pytest.approx(before / after, rel=1e-12)
            assert before / after <= 1 / (1 - p)
