"""The log of decisions: nothing is lost, nothing is overwritten unseen, everything comes back."""

import signal
import sqlite3
import subprocess
import sys
import threading

import pytest
from ranking import saved

from tracin import DecisionError
from tracin.decisions.log import DecidedElsewhereError, DecisionLog
from tracin.decisions.ranked_table import ranked_table_in


def opened(folder):
    table = ranked_table_in(folder)
    return DecisionLog(table.log, table)


def state(log):
    return {row: (one.kind, one.label) for row, one in log.holding().items()}


def test_a_decision_is_there_when_the_file_is_opened_again(tmp_path):
    log = opened(saved(tmp_path))
    log.decide([1], "wrong", None, "a")
    log.decide([3], "relabelled", 1, "a")
    log.close()

    again = opened(tmp_path)

    assert state(again) == {1: ("wrong", None), 3: ("relabelled", 1)}
    assert again.decided == 2
    assert again.latest(3).at > 1e9


def test_undo_and_redo_walk_back_and_forth_also_after_a_restart(tmp_path):
    log = opened(saved(tmp_path))
    log.decide([1], "wrong", None, "a")
    log.decide([1], "right", None, "a")
    log.decide([2], "relabelled", 0, "a")

    assert log.undo("a") == [2]
    assert state(log) == {1: ("right", None)}
    log.close()
    log = opened(tmp_path)
    assert log.undo("a") == [1]
    assert state(log) == {1: ("wrong", None)}
    assert log.undo("a") == [1]
    assert log.undo("a") == []
    assert state(log) == {}
    assert [log.redo("a"), log.redo("a")] == [[1], [1]]
    log.close()
    log = opened(tmp_path)
    assert log.redo("a") == [2]
    assert log.redo("a") == []
    assert state(log) == {1: ("right", None), 2: ("relabelled", 0)}


def test_a_new_decision_ends_what_could_be_done_again(tmp_path):
    log = opened(saved(tmp_path))
    log.decide([1], "wrong", None, "a")
    log.undo("a")
    log.decide([2], "right", None, "a")

    assert log.redo("a") == []


def test_undo_takes_back_this_tabs_decisions_alone_and_never_anothers_later_one(tmp_path):
    log = opened(saved(tmp_path))
    log.decide([1], "wrong", None, "a")
    log.decide([2], "wrong", None, "b")
    log.decide([1], "right", None, "b")  # b has seen what a decided, and decided otherwise

    assert log.undo("a") == []
    assert state(log) == {1: ("right", None), 2: ("wrong", None)}
    assert log.undo("b") == [1]
    assert state(log) == {1: ("wrong", None), 2: ("wrong", None)}
    assert log.undo("a") == [1]


def test_rows_marked_together_are_one_action(tmp_path):
    log = opened(saved(tmp_path))
    log.decide([1, 4, 6], "relabelled", 2, "a")

    assert set(state(log)) == {1, 4, 6}
    assert sorted(log.undo("a")) == [1, 4, 6]
    assert state(log) == {}
    assert sorted(log.redo("a")) == [1, 4, 6]


def test_a_row_that_changed_since_it_was_seen_is_refused_and_so_are_all_with_it(tmp_path):
    log = opened(saved(tmp_path))
    log.decide([1], "wrong", None, "a", seen=[0])

    with pytest.raises(DecidedElsewhereError, match="Row 1 was decided about elsewhere"):
        log.decide([0, 1], "right", None, "b", seen=[0, 0])
    assert state(log) == {1: ("wrong", None)}
    log.decide([0, 1], "right", None, "b", seen=[0, log.latest(1).seq])


def test_two_processes_see_each_other(tmp_path):
    one, other = opened(saved(tmp_path)), opened(tmp_path)
    one.decide([1], "wrong", None, "a", seen=[0])

    with pytest.raises(DecidedElsewhereError):
        other.decide([1], "right", None, "b", seen=[0])
    assert other.since(0) == [1]
    assert state(other) == {1: ("wrong", None)}


def test_threads_lose_no_decision(tmp_path):
    log = opened(saved(tmp_path))

    def decide(row):
        for turn in range(10):
            log.decide([row], ("wrong", "right")[turn % 2], None, f"tab {row}")

    threads = [threading.Thread(target=decide, args=(row,)) for row in range(4)]
    [one.start() for one in threads]
    [one.join() for one in threads]

    assert log.revision == 40
    assert state(log) == dict.fromkeys(range(4), ("right", None))


def test_nothing_is_ever_deleted(tmp_path):
    log = opened(saved(tmp_path))
    log.decide([1], "wrong", None, "a")
    log.undo("a")
    log.redo("a")
    log.decide([1], "undecided", None, "a")

    found = sqlite3.connect(tmp_path / "decisions.sqlite").execute("SELECT kind FROM log")

    assert [kind for (kind,) in found] == [1, 0, 1, 0]


def test_decisions_belong_to_the_data_not_to_the_ranking(tmp_path):
    log = opened(saved(tmp_path))
    log.decide([1], "wrong", None, "a")
    log.close()

    ranked_again = opened(saved(tmp_path, loss=[0.5] * 8))
    assert state(ranked_again) == {1: ("wrong", None)}
    ranked_again.close()
    relabelled = opened(saved(tmp_path, given_labels=[1, 1, 2, 0, 1, 2, 0, 1]))
    assert (state(relabelled), relabelled.others) == ({}, 1)
    relabelled.close()
    renamed = opened(saved(tmp_path, ids=[str(100 + at) for at in range(8)]))
    assert (state(renamed), renamed.others) == ({}, 1)
    renamed.close()
    assert state(opened(saved(tmp_path))) == {1: ("wrong", None)}


def test_the_last_fifty_say_when_to_stop(tmp_path):
    log = opened(saved(tmp_path))
    for row, kind in enumerate(["wrong", "right", "right", "wrong", "right"]):
        log.decide([row], kind, None, "a")
    log.decide([5], "relabelled", 2, "a")  # the label that it has: it was right

    assert log.recent(50) == (6, 2)
    assert log.recent(3) == (3, 1)
    log.decide([0], "right", None, "a")
    assert log.recent(50) == (6, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0], "maybe", None), 'one of "undecided", "wrong", "right", "relabelled"'),
        (([0], "wrong", 3), "belongs to 'relabelled'"),
        (([0], "relabelled", None), "belongs to 'relabelled'"),
        (([8], "wrong", None), "from 0 to 7"),
        (([-1], "wrong", None), "from 0 to 7"),
        (([], "wrong", None), "each once"),
        (([1, 1], "wrong", None), "each once"),
    ],
)
def test_what_is_no_decision_is_refused(tmp_path, arguments, words):
    log = opened(saved(tmp_path))

    with pytest.raises(DecisionError, match=words):
        log.decide(*arguments, "a")
    assert log.revision == 0


def test_a_file_that_is_no_log_is_explained_and_left_alone(tmp_path):
    saved(tmp_path)
    (tmp_path / "decisions.sqlite").write_bytes(b"no database" * 100)

    with pytest.raises(DecisionError, match=r"decisions.sqlite cannot be opened: file is not a"):
        opened(tmp_path)
    assert (tmp_path / "decisions.sqlite").read_bytes() == b"no database" * 100


def test_a_log_of_a_later_format_is_refused(tmp_path):
    opened(saved(tmp_path)).close()
    with sqlite3.connect(tmp_path / "decisions.sqlite") as later:
        later.execute("PRAGMA user_version=9")

    with pytest.raises(DecisionError, match="has format 9, and this release of tracin reads 1"):
        opened(tmp_path)


WRITER = """
import sys
from tracin.decisions.log import DecisionLog
from tracin.decisions.ranked_table import ranked_table_in

table = ranked_table_in(sys.argv[1])
log = DecisionLog(table.log, table)
for turn in range(500):
    log.decide([turn % 8], ("wrong", "right")[turn // 8 % 2], None, "a")
    print(log.revision, flush=True)
"""


def test_kill_minus_nine_in_the_middle_of_500_decisions_loses_none(tmp_path):
    saved(tmp_path)
    command = [sys.executable, "-c", WRITER, str(tmp_path)]

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        answered = [int(writer.stdout.readline()) for _ in range(250)]
        writer.send_signal(signal.SIGKILL)
        answered += [int(line) for line in writer.stdout.read().split()]

    log = opened(tmp_path)
    assert log.revision >= answered[-1] >= 250  # the last one may be kept and not yet answered
    assert log.revision <= answered[-1] + 1
    log.decide([0], "wrong", None, "b")
    assert log.decided == 8
