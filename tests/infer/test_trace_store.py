"""How posteriors store traces: equal to the originals, without graphs, in little memory."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

import sumprod
from sumprod import distributions as dist
from sumprod import handlers
from sumprod.handlers.util import site_is_subsample
from sumprod.infer.abstract_infer import TracePosterior
from tests.infer.posterior_cases import FromRuns, Pair, counted, rich_model


def tensors_of(item: Any) -> list[Tensor]:
    """All tensors inside a site."""
    if isinstance(item, Tensor):
        return [item]
    if isinstance(item, torch.distributions.Distribution | torch.distributions.Transform):
        return tensors_of(vars(item))
    if isinstance(item, dict):
        return [tensor for entry in item.values() for tensor in tensors_of(entry)]
    return (
        [tensor for entry in item for tensor in tensors_of(entry)] if isinstance(item, list | tuple) else []
    )


class Kept(TracePosterior):
    """Keeps the traces it yields, too."""

    def _traces(self, *args: Any, **kwargs: Any) -> Any:
        self.originals = []
        for _ in range(5):
            self.originals.append(handlers.trace(rich_model).get_trace(*args, **kwargs))
            yield self.originals[-1], 0.0


@pytest.mark.parametrize("detach", [True, False])
def test_stored_traces_are_the_traces(detach: bool) -> None:
    posterior = Kept(detach=detach).run(torch.tensor([0.4, -0.2]), factor=3.0)
    for original, stored in zip(posterior.originals, posterior.exec_traces, strict=True):
        assert list(stored.nodes) == list(original.nodes)
        assert stored.observation_nodes == original.observation_nodes
        for name, site in original.nodes.items():
            kept = stored.nodes[name]
            assert kept.keys() == site.keys()
            for key in ("type", "name", "is_observed", "cond_indep_stack", "infer", "kwargs", "scale"):
                assert kept.get(key) == site.get(key), (name, key)
            assert type(kept.get("fn")) is type(site.get("fn"))
            if name not in ("rows", "columns"):
                assert repr(kept.get("fn")) == repr(site.get("fn"))
            if name != "_RETURN":
                torch.testing.assert_close(kept.get("value"), site.get("value"), rtol=0, atol=0)
        stored.compute_log_prob()
        original.compute_log_prob()
        for name, site in original.nodes.items():
            if site["type"] == "sample":
                torch.testing.assert_close(stored.nodes[name]["log_prob"], site["log_prob"], rtol=0, atol=0)
        result = stored.nodes["_RETURN"]["value"]
        assert isinstance(result, Pair)
        assert result.second == "label"
        assert torch.equal(result.first, original.nodes["_RETURN"]["value"].first)
        assert torch.equal(stored.nodes["_INPUT"]["args"][0], torch.tensor([0.4, -0.2]))
        assert site_is_subsample(stored.nodes["columns"])


def test_stored_traces_can_be_replayed_and_sampled_from() -> None:
    posterior = Kept().run(torch.tensor([0.4, -0.2]))
    for stored in posterior.exec_traces:
        again = handlers.trace(handlers.replay(rich_model, trace=stored)).get_trace(torch.tensor([0.4, -0.2]))
        assert torch.equal(again.nodes["h"]["value"], stored.nodes["h"]["value"])
        assert torch.equal(again.nodes["columns"]["value"], stored.nodes["columns"]["value"])
        assert stored.nodes["e"]["fn"].sample((3,)).shape == (3,)
        assert stored.nodes["c"]["fn"].expand([4]).sample().shape == (4,)


def test_stored_tensors_carry_no_graph() -> None:
    stored = Kept().run(torch.tensor([0.4, -0.2])).exec_traces[2]
    for name, site in stored.nodes.items():
        for tensor in tensors_of(site):
            assert not tensor.requires_grad, name


def test_detach_false_lets_gradients_through() -> None:
    loc = torch.tensor(0.7, requires_grad=True)

    def model() -> Tensor:
        return sumprod.sample("z", dist.Normal(loc, 1.0))

    class Weighted(TracePosterior):
        def _traces(self) -> Any:
            for _ in range(3):
                trace = handlers.trace(model).get_trace()
                yield trace, trace.log_prob_sum()

    posterior = Weighted(detach=False).run()
    (grad,) = torch.autograd.grad(posterior.stack("z").sum(), loc, retain_graph=True)
    assert grad == 3
    (grad,) = torch.autograd.grad(posterior.marginal("z").support()["z"].mean(), loc, retain_graph=True)
    assert grad == pytest.approx(1.0)
    (grad,) = torch.autograd.grad(posterior.exec_traces[1].nodes["z"]["fn"].mean, loc, retain_graph=True)
    assert grad == 1
    assert all(weight.requires_grad for weight in posterior.log_weights)
    assert not any(weight.requires_grad for weight in Weighted().run().log_weights)


def test_training_on_does_not_change_stored_traces() -> None:
    def model() -> None:
        loc = sumprod.param("loc", torch.tensor(1.0))
        half = loc.detach()[None].expand(3)
        sumprod.sample("point", dist.Delta(loc))
        sumprod.sample("z", dist.Normal(loc, 1.0))
        sumprod.sample("w", dist.Normal(half, 1.0).to_event(1))

    class Training(TracePosterior):
        def _traces(self) -> Any:
            for step in range(4):
                yield handlers.trace(model).get_trace(), 0.0
                leaf = sumprod.param("loc").unconstrained()
                with torch.no_grad():
                    if step % 2:
                        leaf.add_(1.0)
                    else:
                        leaf.data += 1.0

    posterior = Training().run()
    assert posterior.stack("point").tolist() == [1.0, 2.0, 3.0, 4.0]
    assert posterior.stack("loc").tolist() == [1.0, 2.0, 3.0, 4.0]
    assert [trace.nodes["z"]["fn"].loc.item() for trace in posterior.exec_traces] == [1.0, 2.0, 3.0, 4.0]


def test_programs_that_take_several_paths() -> None:
    def model(number: int) -> Tensor:
        if number % 3 == 1:
            sumprod.sample("extra", dist.Normal(0.0, 1.0))
        size = 2 if number % 3 == 2 else 1
        sumprod.sample("vector", dist.Normal(torch.zeros(size), 1.0).to_event(1))
        return sumprod.sample("number", dist.Delta(torch.tensor(float(number))))

    class Paths(TracePosterior):
        def _traces(self) -> Any:
            for number in range(200):
                yield handlers.trace(model).get_trace(number), float(number)

    posterior = Paths().run()
    assert posterior.stack("number").tolist() == [float(number) for number in range(200)]
    assert posterior.stack("_RETURN").tolist() == [float(number) for number in range(200)]
    assert ["extra" in trace for trace in posterior.exec_traces] == [number % 3 == 1 for number in range(200)]
    assert [t.nodes["number"]["value"].item() for t in posterior.exec_traces[5:9]] == [5.0, 6.0, 7.0, 8.0]
    assert posterior.exec_traces[-1].nodes["number"]["value"] == 199
    with pytest.raises(IndexError):
        posterior.exec_traces[200]
    with pytest.raises(KeyError, match=r"no site 'extra' in trace 0: its sites are \['_INPUT', 'vector'"):
        posterior.stack("extra")
    with pytest.raises(ValueError, match="site 'vector' has values of different kinds in different traces"):
        posterior.stack("vector")


def test_only_tensors_stack() -> None:
    posterior = FromRuns(lambda: "text", [0.0]).run()
    with pytest.raises(TypeError, match="the value of site '_RETURN' is not a tensor but str"):
        posterior.stack("_RETURN")


def test_traces_can_be_read_while_a_run_goes_on() -> None:
    class Reading(FromRuns):
        def _traces(self) -> Any:
            for item in super()._traces():
                yield item
                assert self.exec_traces[-1].nodes["number"]["value"] == len(self.exec_traces) - 1

    assert Reading(counted(), [0.0] * 100).run().stack("number").tolist() == list(range(100))


def storage_bytes() -> tuple[int, int]:
    """Number of tensors alive, and bytes of their distinct storages."""
    gc.collect()
    # A compiler that ran in this process leaves tensors without storage behind.
    kinds = (Tensor, torch.nn.Parameter)
    tensors = [item for item in gc.get_objects() if type(item) in kinds]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return len(tensors), sum(storages.values())


@pytest.mark.usefixtures("new_objects_only")
@pytest.mark.parametrize("latent", [10, 1000])
def test_memory_grows_by_the_values_alone(latent: int) -> None:
    data = torch.randn(20_000)

    def model(data: Tensor) -> Tensor:
        offset = sumprod.param("offset", torch.zeros(5_000))
        z = sumprod.sample("z", dist.Normal(torch.zeros(latent), 1.0).to_event(1))
        with sumprod.plate("data", len(data)):
            sumprod.sample("x", dist.Normal(z.sum() + offset.sum(), 1.0), obs=data * 1)
        return z.mean()

    sizes = {}
    for count in (200, 400):
        posterior = FromRuns(model, [0.0] * count).run(data)
        sizes[count] = storage_bytes()
        del posterior
    assert sizes[400][0] == sizes[200][0]
    grown = (sizes[400][1] - sizes[200][1]) / 200
    # z in its site; its sum, as the mean of x, and the return value. x itself, its scale, the data and
    # the parameters are there once.
    assert grown == (latent + 2) * 4
