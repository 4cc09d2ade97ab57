"""The handler stack: order, errors, threads, non-local exits."""

from __future__ import annotations

import threading

import pytest
import torch

import sumprod
from sumprod import handlers, runtime
from sumprod.distributions import Normal
from sumprod.handlers.messenger import Messenger, ReentrantMessenger


class Recorder(Messenger):
    def __init__(self, label, log):
        super().__init__()
        self.label, self.log = label, log

    def _pyro_sample(self, msg):
        self.log.append(f"{self.label} before")

    def _pyro_post_sample(self, msg):
        self.log.append(f"{self.label} after")


class Stopper(Recorder):
    def _pyro_sample(self, msg):
        super()._pyro_sample(msg)
        msg["stop"] = True


def draw(name="x", **kwargs):
    return sumprod.sample(name, Normal(0.0, 1.0), **kwargs)


def test_inner_handlers_act_first_and_finish_last():
    log = []
    with Recorder("outer", log), Recorder("inner", log):
        draw()
    assert log == ["inner before", "outer before", "outer after", "inner after"]


def test_stop_hides_from_the_outside_only():
    log = []
    with Recorder("outer", log), Stopper("middle", log), Recorder("inner", log):
        draw()
    assert log == ["inner before", "middle before", "middle after", "inner after"]


def test_message_has_every_documented_key():
    with handlers.trace() as trace:
        draw()
    documented = set(runtime.Message.__annotations__)
    added_later = {"log_prob", "log_prob_sum", "unscaled_log_prob", "score_parts", "packed"}
    assert set(trace.trace.nodes["x"]) == documented - added_later


def test_continuation_runs_last():
    log = []

    class WithContinuation(Messenger):
        def _pyro_sample(self, msg):
            msg["continuation"] = lambda msg: log.append(f"continued at {msg['name']}")

    with Recorder("outer", log), WithContinuation():
        draw()
    assert log == ["outer before", "outer after", "continued at x"]


def test_a_handler_is_not_installed_twice():
    recorder = Recorder("a", [])
    with recorder, pytest.raises(ValueError, match="cannot install a Messenger instance twice"), recorder:
        pass


def test_leaving_out_of_order_is_an_error():
    outer, inner = Recorder("a", []), Recorder("b", [])
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(ValueError, match="handlers close in the reverse order"):
        outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    outer.__exit__(None, None, None)


@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError, ZeroDivisionError, KeyboardInterrupt])
def test_stack_is_empty_after_any_exception(error):
    def program():
        with sumprod.plate("a", 2), sumprod.plate("b", 3):
            draw()
            for i in sumprod.plate("c", 2):
                for t in sumprod.markov(range(3)):
                    draw(f"y{i}{t}")
                    if t == 1:
                        raise error("from the program")

    with pytest.raises(error):
        handlers.trace(handlers.scale(program, scale=2.0)).get_trace()
    assert runtime.handler_stack() == []
    # And the same names and dims can be used again.
    with sumprod.plate("a", 2), sumprod.plate("b", 3):
        pass


def test_exception_in_exit_leaves_the_stack_empty():
    class Raises(Messenger):
        def __exit__(self, *exception):
            super().__exit__(*exception)
            raise OSError("from exit")

    with pytest.raises(OSError, match="from exit"), handlers.trace(), Raises():
        draw()
    assert runtime.handler_stack() == []


def test_errors_keep_their_class_and_name_the_site():
    class Custom(ValueError):
        def __init__(self, code, detail):
            super().__init__(code, detail)

    def fails():
        raise Custom(3, "detail")

    def program():
        with sumprod.plate("rows", 4):
            sumprod.sample("site", fails)

    with pytest.raises(Custom) as caught:
        handlers.trace(program).get_trace()
    assert caught.value.args == (3, "detail")
    assert caught.value.site == "site"
    assert [frame.name for frame in caught.value.plates] == ["rows"]
    assert any("at sample site 'site' in plate 'rows' (dim=-1, size=4)" in n for n in caught.value.__notes__)


def test_unicode_error_survives():
    def fails():
        return b"\xff".decode("utf-8")

    with pytest.raises(UnicodeDecodeError):
        handlers.trace(lambda: sumprod.sample("x", fails)).get_trace()


def test_shape_table_appears_once_under_nested_traces():
    def program():
        draw()
        with sumprod.plate("p", 3):
            sumprod.sample("y", Normal(torch.zeros(2), 1.0))

    with pytest.raises(ValueError, match="Shape mismatch inside plate") as caught:
        handlers.trace(handlers.trace(program)).get_trace()
    text = str(caught.value)
    assert text.count("Trace Shapes:") == 1
    assert "at sample site 'y'" in text


def test_two_threads_run_two_programs():
    barrier = threading.Barrier(2)
    traces = {}

    def program(label):
        with sumprod.plate(f"plate_{label}", 3):
            barrier.wait(timeout=10)
            draw(f"x_{label}")
            barrier.wait(timeout=10)

    def run(label):
        traces[label] = handlers.trace(program).get_trace(label)

    threads = [threading.Thread(target=run, args=(label,)) for label in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    for label in "ab":
        nodes = traces[label].nodes
        assert [name for name, site in nodes.items() if site["type"] == "sample"] == [
            f"plate_{label}",
            f"x_{label}",
        ]
        assert nodes[f"x_{label}"]["cond_indep_stack"][0].dim == -1


def test_reentrant_handler_counts_its_entries():
    class Counting(ReentrantMessenger):
        seen = 0

        def _pyro_sample(self, msg):
            self.seen += 1

    counting = Counting()
    with counting, counting:
        draw("a")
    draw("b")
    assert counting.seen == 1


def test_register_and_unregister():
    class Doubling(Messenger):
        pass

    @Doubling.register(type="sample", post=True)
    def double(self, msg):
        msg["value"] = 2.0 * msg["value"]

    def program():
        return sumprod.sample("x", lambda: torch.tensor(3.0))

    with Doubling():
        assert program() == 6.0
    Doubling.unregister(double, type="sample")
    with Doubling():
        assert program() == 3.0
    for method in (Doubling.register, Doubling.unregister):
        with pytest.raises(ValueError, match="type"):
            method(double)


def test_effectful_makes_a_primitive():
    @sumprod.runtime.effectful(type="tripled")
    def identity(value):
        return value

    class Tripling(Messenger):
        def _pyro_tripled(self, msg):
            msg["value"] = 3 * msg["args"][0]

    assert identity(2) == 2
    with Tripling():
        assert identity(2, name="n") == 6
    with handlers.trace():
        assert identity(2, name="n") == 2
        assert identity(2, name="n", obs=7) == 7
    with pytest.raises(ValueError, match="needs the type"):
        sumprod.runtime.effectful(lambda: 0)


def test_decorated_method_binds_self():
    class Model:
        loc = 5.0

        @handlers.scale(scale=2.0)
        def scaled(self, offset):
            return self.loc + offset

        @handlers.trace()
        def traced(self, offset):
            return draw() * 0 + self.loc + offset

    model = Model()
    assert model.scaled(1.0) == 6.0
    assert model.traced(1.0) == 6.0


@pytest.mark.parametrize("name", ["trace", "block", "scale", "mask", "broadcast", "escape", "lift"])
def test_a_non_callable_is_refused(name):
    with pytest.raises(ValueError, match="is not callable, did you mean to pass it as a keyword arg"):
        getattr(handlers, name)({"x": 1.0})


def test_three_ways_to_use_a_handler():
    def program():
        return draw()

    for run in (
        handlers.trace(handlers.scale(program, scale=3.0)).get_trace,
        handlers.trace(handlers.scale(scale=3.0)(program)).get_trace,
    ):
        assert run().nodes["x"]["scale"] == 3.0
    with handlers.trace() as trace, handlers.scale(scale=3.0):
        program()
    assert trace.trace.nodes["x"]["scale"] == 3.0


def test_unwrap_and_block_messengers():
    def program():
        return draw()

    assert handlers.unwrap(handlers.scale(handlers.trace(program), scale=2.0)) is program
    with handlers.trace() as trace, handlers.scale(scale=2.0):
        with handlers.block_messengers(lambda h: isinstance(h, handlers.ScaleMessenger)) as blocked:
            draw("a")
        draw("b")
    assert len(blocked) == 1
    assert (trace.trace.nodes["a"]["scale"], trace.trace.nodes["b"]["scale"]) == (1.0, 2.0)


def test_get_mask_and_get_plates():
    assert handlers.get_mask() is None
    assert handlers.get_plates() == ()
    with handlers.mask(mask=torch.tensor([True, False])), handlers.mask(mask=torch.tensor([True, True])):
        assert handlers.get_mask().tolist() == [True, False]
    with sumprod.plate("a", 2), sumprod.plate("b", 3):
        assert [(f.name, f.dim, f.size) for f in handlers.get_plates()] == [("a", -1, 2), ("b", -2, 3)]


def test_stack_under_its_old_names():
    with handlers.trace():
        assert len(runtime._PYRO_STACK) == 1
    assert runtime._PYRO_STACK == []
    assert runtime._PYRO_PARAM_STORE is sumprod.get_param_store()
    with pytest.raises(AttributeError):
        runtime._NOT_THERE  # noqa: B018
