"""The policy of a reload, without a process or a folder."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nlocalmodels_server.config import DeclaredModel
from nlocalmodels_server.memory import Memory
from nlocalmodels_server.models.model_ids import NamedModel, files_of
from nlocalmodels_server.models.reload import (
    Plan,
    Stamp,
    Target,
    find_shortage,
    judge_files,
    make_plan,
    make_targets,
    missing_files,
)
from nlocalmodels_server.workers.protocol import LoadOptions

GIB = 1024**3
OPTIONS = LoadOptions(2, 32)
STAMP = Stamp(1, 100, 5)


def target(name: str, stamp: Stamp = STAMP, file: str | None = None) -> Target:
    file = file or f"{name}.gguf"
    return Target(name, file, OPTIONS, ((file, stamp),))


def by_id(*targets: Target) -> dict[str, Target]:
    return {one.id: one for one in targets}


def test_plan_tells_added_removed_changed_and_kept_apart() -> None:
    plan = make_plan(
        by_id(target("a"), target("b"), target("c")), by_id(target("d"), target("a"), target("b", Stamp(2, 100, 5)))
    )
    assert plan == Plan(kept=("a",), added=("d",), removed=("c",), changed=(("b", "b.gguf has other content"),))
    assert str(plan) == "added d; removed c; changed b; kept a"


@pytest.mark.parametrize("stamp", [Stamp(2, 100, 5), Stamp(1, 101, 5), Stamp(1, 100, 6)])
def test_inode_size_and_time_each_make_another_content(stamp: Stamp) -> None:
    assert make_plan(by_id(target("a")), by_id(target("a", stamp))).changed


def test_another_file_and_other_options_are_changes() -> None:
    other_options = replace(target("a"), options=LoadOptions(2, 32, 128))
    assert make_plan(by_id(target("a")), by_id(other_options)).changed == (("a", "a.gguf with other options"),)
    other_file = target("a", file="x.gguf")
    assert make_plan(by_id(target("a")), by_id(other_file)).changed == (("a", "x.gguf instead of a.gguf"),)


def test_a_model_that_only_goes_by_another_id_is_renamed() -> None:
    plan = make_plan(by_id(target("a", file="m.gguf")), by_id(target("b", file="m.gguf")))
    assert plan == Plan(renamed=(("b", "a"),))
    assert make_plan(by_id(target("a", file="m.gguf")), by_id(target("b", Stamp(9, 9, 9), "m.gguf"))).renamed == ()


def test_an_id_that_another_file_takes_is_a_change_even_if_its_file_goes_on_by_another() -> None:
    plan = make_plan(by_id(target("a", file="m.gguf")), by_id(target("a", file="n.gguf"), target("b", file="m.gguf")))
    assert (plan.added, plan.changed) == (("b",), (("a", "n.gguf instead of m.gguf"),))


def test_nothing_is_planned_for_nothing() -> None:
    assert make_plan({}, {}) == Plan()
    assert str(Plan()) == "there is no model"


def test_the_stamps_of_all_shards_count() -> None:
    first, second = files_of("x/big-Q8_0-00001-of-00002.gguf")
    assert second == "x/big-Q8_0-00002-of-00002.gguf"
    named = [(NamedModel("big", first), OPTIONS)]
    made = make_targets(named, {first: STAMP, second: Stamp(2, 50, 5)})["big"]
    assert (made.files, made.size_bytes) == ((first, second), 150)
    changed = make_targets(named, {first: STAMP, second: Stamp(3, 50, 5)})
    assert make_plan({"big": made}, changed).changed == (("big", f"{first} has other content"),)


def test_known_files_count_as_what_was_loaded() -> None:
    named = [(NamedModel("a", "a.gguf"), OPTIONS)]
    loaded = target("a", Stamp(7, 7, 7))
    assert make_targets(named, {"a.gguf": STAMP}, [loaded], {"a.gguf"}) == {"a": loaded}
    assert make_targets(named, {"a.gguf": STAMP}, [loaded], set()) == {"a": target("a")}


def test_a_file_that_has_settled_is_looked_at_and_one_that_has_not_stays_as_it_is() -> None:
    other = Stamp(2, 100, 5)
    assert judge_files([target("a")], {"a.gguf": STAMP}, {"a.gguf": STAMP}) == ({"a.gguf"}, {})
    assert judge_files([target("a")], {"a.gguf": other}, {"a.gguf": other}) == (set(), {})
    known, held = judge_files([target("a")], {"a.gguf": STAMP}, {"a.gguf": other, "new.gguf": other})
    assert (known, set(held)) == ({"a.gguf"}, {"a.gguf", "new.gguf"})


def test_a_file_that_is_gone_is_given_up_unless_it_is_declared_or_was_there_a_moment_ago() -> None:
    assert judge_files([target("a")], {}, {})[0] == set()
    assert judge_files([target("a")], {}, {}, declared={"a.gguf"})[0] == {"a.gguf"}
    assert judge_files([target("a")], {"a.gguf": STAMP}, {})[0] == {"a.gguf"}


def test_the_files_of_a_set_that_is_not_complete_are_left_alone() -> None:
    snapshot = {"a.gguf": Stamp(2, 2, 2), "new.gguf": STAMP}
    known, held = judge_files([target("a")], snapshot, snapshot, pending=["a.gguf", "new.gguf"])
    assert (known, set(held)) == ({"a.gguf"}, {"a.gguf", "new.gguf"})
    assert "not complete" in held["new.gguf"]


def test_missing_files_are_those_that_are_not_there_or_not_as_the_set_says() -> None:
    models = [DeclaredModel("a", "a.gguf"), DeclaredModel("b", "b-00001-of-00002.gguf")]
    settled = {"a.gguf": STAMP, "b-00001-of-00002.gguf": STAMP}
    assert missing_files(models, None, None, settled) == ["b-00002-of-00002.gguf"]
    manifest = ".nlocalmodels/sets/0123456789ab.json"
    assert missing_files(models, "0123456789ab", None, settled) == [manifest, "b-00002-of-00002.gguf"]
    sizes = {"a.gguf": 99, "b-00001-of-00002.gguf": 100, "b-00002-of-00002.gguf": 1, "c.gguf": 1}
    assert missing_files(models, "0123456789ab", sizes, settled) == [
        "a.gguf: it has 100 bytes, by the set 99",
        "b-00002-of-00002.gguf",
        "c.gguf",
    ]
    assert missing_files(None, None, None, {}) == []


def test_a_shortage_is_told_with_its_arithmetic() -> None:
    big = target("a", Stamp(1, 4 * GIB, 1))
    assert find_shortage(big, None) is None
    assert find_shortage(big, Memory(12 * GIB, 6 * GIB)) is None
    assert find_shortage(big, Memory(11 * GIB, 6 * GIB)) == (
        "it needs 5.90 GiB (4.00 GiB x 1.1 + 1.50 GiB), and 5.00 GiB are free (11.00 GiB limit - 6.00 GiB in use)"
    )
