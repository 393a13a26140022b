"""Control groups by contract: on trees of plain files, as the kernel lays them out."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from mars.tools.cgroup_tree import CgroupTree, find_tree
from mars.tools.group import Group
from mars.tools.groups import Groups, Limits
from mars.tools.orphans import is_alive, mark_of

LIMITS = Limits(quota_cores=2, on=(2, 5), weight=50, processes=77, memory_bytes=1 << 30)
V1 = """\
9:pids:/
8:memory:/fleet
5:cpuset:/fleet
3:cpu,cpuacct:/fleet/mars
1:name=systemd:/x
0::/
"""


def lay_out(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def v2(root: Path, **files: str) -> CgroupTree:
    controllers = "cpuset cpu io memory pids\n"
    lay_out(root, {"cgroup.controllers": controllers, "a/b/cgroup.controllers": controllers})
    lay_out(root, {name.replace("__", "/").replace("_max", ".max"): t for name, t in files.items()})
    found = find_tree(root, "0::/a/b\n")
    assert found is not None
    return found


def v1(root: Path) -> CgroupTree:
    for controller in ("cpu,cpuacct", "cpuset", "memory", "pids"):
        lay_out(root, {f"{controller}/fleet/mars/cgroup.procs": ""})
    (root / "cpu").symlink_to("cpu,cpuacct")
    (root / "cpuacct").symlink_to("cpu,cpuacct")
    lay_out(root, {"cpuset/fleet/cpuset.mems": "0-1\n"})
    found = find_tree(root, V1)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("inner", "outer", "cores"),
    [
        ("max 100000", "max 100000", None),
        ("250000 100000", "max 100000", 2.5),
        ("max 100000", "50000 100000", 0.5),
        ("400000 100000", "300000 100000", 3.0),
    ],
)
def test_the_narrowest_quota_around_us_counts_v2(
    tmp_path: Path, inner: str, outer: str, cores: float | None
) -> None:
    tree = v2(tmp_path, a__b__cpu_max=inner + "\n", a__cpu_max=outer + "\n")
    assert (tree.version, tree.quota_cores()) == ("v2", cores)


@pytest.mark.parametrize(("quota_us", "cores"), [("-1", None), ("150000", 1.5)])
def test_the_narrowest_quota_around_us_counts_v1(
    tmp_path: Path, quota_us: str, cores: float | None
) -> None:
    tree = v1(tmp_path)
    for folder, quota in (("fleet/mars", "-1"), ("fleet", quota_us), (".", "-1")):
        lay_out(
            tmp_path / "cpu" / folder, {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": "100000"}
        )
    assert (tree.version, tree.quota_cores()) == ("v1", cores)


def test_a_container_that_sees_its_own_top_only(tmp_path: Path) -> None:
    lay_out(tmp_path, {"cgroup.controllers": "cpu\n", "cpu.max": "100000 100000\n"})
    tree = find_tree(tmp_path, "0::/host/path/that/is/not/mounted\n")
    assert tree is not None
    assert tree.folders == {"": tmp_path, "cpu": tmp_path}
    assert tree.quota_cores() == 1.0


def test_no_control_groups(tmp_path: Path) -> None:
    assert find_tree(tmp_path, V1) is None
    assert find_tree(tmp_path, "") is None


def files_of(group: Group) -> dict[str, str]:
    folders = {*group.folders.values()}
    return {file.name: file.read_text() for folder in folders for file in folder.iterdir()}


def test_what_a_lease_writes_v2(tmp_path: Path) -> None:
    groups = Groups.probe(v2(tmp_path), LIMITS.on)
    assert groups is not None
    assert str(groups) == "cgroup v2: cpu, cpuset, pids, memory"
    tried = tmp_path / f"a/b/mars-{mark_of(os.getpid())}-probe"
    assert (tried / "cpu.max").read_text() == "200000 100000", "the widest lease is tried"
    group = groups.make("tool", LIMITS)
    assert group.joins == [str(tmp_path / f"a/b/mars-{mark_of(os.getpid())}-tool")]
    assert files_of(group) == {
        "cpu.max": "200000 100000",
        "cpu.weight": "50",
        "cpuset.cpus": "2,5",
        "pids.max": "77",
        "memory.max": str(1 << 30),
    }


def test_what_a_lease_writes_v1(tmp_path: Path) -> None:
    groups = Groups.probe(v1(tmp_path), LIMITS.on)
    assert groups is not None
    assert str(groups) == "cgroup v1: cpu, cpuset, pids, memory"
    name = f"mars-{mark_of(os.getpid())}-tool"
    group = groups.make("tool", LIMITS)
    assert group.joins == [
        str(tmp_path / "cpu,cpuacct/fleet/mars" / name),
        str(tmp_path / "cpuset/fleet" / name),
        str(tmp_path / "memory/fleet" / name),
        str(tmp_path / "pids" / name),
    ]
    assert files_of(group) == {
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "200000",
        "cpu.shares": "512",
        "cpuset.cpus": "2,5",
        "cpuset.mems": "0-1",
        "pids.max": "77",
        "memory.limit_in_bytes": str(1 << 30),
    }


def test_without_a_limit_neither_memory_nor_cpu_time_is_limited(tmp_path: Path) -> None:
    free = Limits(quota_cores=0, on=(0,), weight=100, processes=9, memory_bytes=0)
    (two, one) = (tmp_path / "v2", tmp_path / "v1")
    groups = Groups.probe(v2(two), LIMITS.on), Groups.probe(v1(one), LIMITS.on)
    assert groups[0] is not None
    assert groups[1] is not None
    written = [files_of(group.make("tool", free)) for group in groups if group is not None]
    assert (written[0]["memory.max"], written[0]["cpu.max"]) == ("max", "max 100000")
    assert (written[1]["cpu.cfs_quota_us"], "memory.limit_in_bytes" in written[1]) == ("-1", False)


def test_controllers_that_the_system_does_not_give_are_left_out(tmp_path: Path) -> None:
    tree = v2(tmp_path)
    lent = CgroupTree("v2", tmp_path, {name: tree.folders[name] for name in ("", "pids")})
    assert str(Groups.probe(lent, LIMITS.on)) == "cgroup v2: pids"
    bare = CgroupTree("v2", tmp_path, {"": tree.folders[""]})
    assert str(Groups.probe(bare, LIMITS.on)) == "cgroup v2: no controllers"


def test_a_folder_that_is_not_ours_to_write_in(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")  # nobody can make a folder in a file, root neither
    assert Groups.probe(CgroupTree("v2", tmp_path, {"": tmp_path / "file"}), LIMITS.on) is None


def test_a_server_alone_in_its_group_moves_out_of_it(tmp_path: Path) -> None:
    """A group of v2 that gives controllers to others may hold no process itself."""
    tree = v2(tmp_path)
    lay_out(tmp_path, {"a/b/cgroup.procs": f"{os.getpid()}\n"})
    Groups.probe(tree, LIMITS.on)
    ours = tmp_path / f"a/b/mars-{mark_of(os.getpid())}-server"
    assert (ours / "cgroup.procs").read_text() == str(os.getpid())
    assert (tmp_path / "a/b/cgroup.subtree_control").read_text().startswith("+")


def test_a_server_with_others_in_its_group_stays(tmp_path: Path) -> None:
    tree = v2(tmp_path)
    lay_out(tmp_path, {"a/b/cgroup.procs": f"1\n{os.getpid()}\n"})
    Groups.probe(tree, LIMITS.on)
    assert not list((tmp_path / "a/b").glob("*-server"))


def test_limits_of_a_shell_change_and_leave_it_what_it_has(tmp_path: Path) -> None:
    """What is in use is not taken away: v2 would kill for it, v1 refuses the limit."""
    free = Limits(quota_cores=0, on=(0,), weight=1, processes=9, memory_bytes=0)
    (two, one) = (tmp_path / "v2", tmp_path / "v1")
    for tree, limit, in_use in (
        (v2(two), "memory.max", "memory.current"),
        (v1(one), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        groups = Groups.probe(tree, LIMITS.on)
        assert groups is not None
        group = groups.make_for_shell(os.getpid(), free)
        assert files_of(group)[limit] in {"max", "-1"}
        name = f"mars-{mark_of(os.getpid())}-shell-{mark_of(os.getpid())}"
        assert {folder.name for folder in group.folders.values()} == {name}
        (group.folders["memory"] / in_use).write_text(f"{3 << 30}\n")
        groups.limit(group, LIMITS)
        assert files_of(group)[limit] == str(3 << 30)
        assert files_of(group)["pids.max"] == "77"


async def test_what_was_used_is_read_before_the_group_goes(tmp_path: Path) -> None:
    two = Group({"": tmp_path, "memory": tmp_path})
    lay_out(tmp_path, {"cpu.stat": "usage_usec 1500000\nuser_usec 1\n", "memory.peak": "4096\n"})
    lay_out(tmp_path, {"memory.events": "low 0\noom 1\noom_kill 1\noom_group_kill 0\n"})
    used = two.used()
    assert (used.cpu_s, used.peak_memory_bytes, used.oom_kills) == (1.5, 4096, 1)


async def test_what_was_used_v1(tmp_path: Path) -> None:
    one = Group({"cpuacct": tmp_path, "memory": tmp_path})
    lay_out(tmp_path, {"cpuacct.usage": "2500000000\n", "memory.max_usage_in_bytes": "8192\n"})
    lay_out(tmp_path, {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n"})
    used = one.used()
    assert (used.cpu_s, used.peak_memory_bytes, used.oom_kills) == (2.5, 8192, 0)


async def test_groups_of_servers_that_are_gone_are_found_and_others_left(tmp_path: Path) -> None:
    groups = Groups.probe(v2(tmp_path / "tree"), LIMITS.on)
    assert groups is not None
    folder = tmp_path / "tree/a/b"
    gone = [folder / f"mars-1-99999999999-{of}" for of in ("tool", "shell-1-99999999999")]
    shell = folder / f"mars-1-99999999999-shell-{mark_of(1)}"
    others = [folder / f"mars-{mark_of(1)}-tool", folder / "somebody-elses", folder / "mars-rover"]
    for each in (*gone, shell, *others):
        each.mkdir()
    assert await groups.end_orphans() == 2
    assert not any(each.exists() for each in gone)
    assert all(each.exists() for each in (shell, *others))
    assert groups.left_shells() == {1: Group(dict.fromkeys(v2(tmp_path / "tree").folders, shell))}


def test_a_mark_names_one_process_for_ever() -> None:
    mark = mark_of(os.getpid())
    assert is_alive(mark)
    assert not is_alive(mark + "0")
    for wrong in ("", "x", "1", "-1-1", "a-b"):
        assert not is_alive(wrong)
