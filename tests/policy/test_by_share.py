"""Classes of tenants before an order of calls."""

import msgspec
from tests.core.test_tenants import call as serve
from tests.policy.test_mars_order import arrived, call

from mars.core.settings import TenantSettings, TenantWeight
from mars.policy.by_share import ByShare
from mars.policy.mars_order import LeastLeftFirst
from mars.policy.presets import Scheduling, build_admission, build_policy
from mars.policy.settings import LeastLeftSettings

SETTINGS = TenantSettings(
    weights=(TenantWeight(tenant="a", weight=1.0),), quantum_s=10.0, again_s=5.0
)


def by_share() -> ByShare:
    """Tenant b has had 25 s, a nothing."""
    order = ByShare(LeastLeftFirst(LeastLeftSettings()), SETTINGS)
    for name in "ab":
        order.observe(msgspec.structs.replace(arrived(name), tenant=name))
    serve(order._shares, "b", 25.0)
    return order


def test_a_class_goes_before_the_order_and_what_is_held_before_both() -> None:
    order = by_share()
    mine, other = call("1", session="a", arrived_s=9.0), call("2", session="b", arrived_s=1.0)
    assert order.run_key(mine, 60.0) == (True, 0, 0.0, 9.0, 50.0)
    assert order.run_key(other, 60.0) == (True, 2, 0.0, 1.0, 50.0)
    assert order.victim_key(mine, 60.0) < order.victim_key(other, 60.0)
    held = call("3", session="b", arrived_s=1.0, is_held=True)
    assert order.run_key(held, 60.0) < order.run_key(mine, 60.0)


def test_the_class_of_a_waiting_call_holds_for_as_long_as_it_says() -> None:
    order = by_share()
    waiting, running = call("1", session="b"), call("2", session="b", kv_tokens=9)
    key = order.run_key(waiting, 60.0)
    order.run_key(running, 60.0)
    assert order.stays(waiting, 60.0).until_s == 65.0
    serve(order._shares, "a", 25.0)
    assert order.run_key(waiting, 65.0) == key
    assert order.run_key(waiting, 65.1)[1] == 0
    assert order.run_key(running, 99.0)[1] == 2, "it keeps the one it has started with"


def test_what_has_been_served_is_forgotten() -> None:
    order = by_share()
    waiting = call("b's", session="b")
    order.run_key(waiting, 60.0)
    serve(order, "b", 1.0)  # type: ignore[arg-type]  # it observes as well
    assert order._classes == {}


def test_without_weights_nothing_of_it_is_there() -> None:
    plain = build_policy(Scheduling())
    assert type(plain.ordering) is LeastLeftFirst
    assert isinstance(build_policy(Scheduling(tenants=SETTINGS)).ordering, ByShare)
    assert build_admission(Scheduling())._shares is None  # type: ignore[attr-defined]
    assert build_admission(Scheduling(tenants=SETTINGS))._shares is not None  # type: ignore[attr-defined]
