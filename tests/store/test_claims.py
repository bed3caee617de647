"""Of several writers one gets a block; what a dead or silent one held is taken over, what a living one holds is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from store.claims import Claims, _key
from store.objects import open_objects


@pytest.fixture(params=["local", "memory"])
def objects(request, tmp_path):
    return open_objects(tmp_path if request.param == "local" else f"memory://claims/{tmp_path.name}")


def test_a_claimed_block_is_refused_to_others_until_it_is_released(objects) -> None:
    with Claims(objects) as ours, Claims(objects) as theirs:
        assert ours.take("train", 3)
        assert ours.take("train", 3)
        assert not theirs.take("train", 3)
        assert theirs.take("train", 4)
        ours.release("train", 3)
        assert theirs.take("train", 3)
    assert objects.names("claims/train/000003") == []


def test_of_many_writers_at_once_exactly_one_wins(objects) -> None:
    claims = [Claims(objects) for _ in range(8)]
    barrier = threading.Barrier(8)

    def attempt(writer: Claims) -> bool:
        barrier.wait()
        return writer.take("train", 0)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, claims)) == 1


CLAIM_AND_DIE = (
    "import sys, os; from store.claims import Claims; from store.objects import open_objects;"
    "c = Claims(open_objects(sys.argv[1])); assert c.take('train', 0); os._exit(9)"
)


def test_the_claim_of_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path) -> None:
    command = [sys.executable, "-c", CLAIM_AND_DIE, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == 9
    with Claims(open_objects(tmp_path)) as ours:
        assert ours.take("train", 0)
        assert ours.holds("train", 0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_claim_of_a_dead_process_whose_parent_has_not_noticed_is_taken_over_at_once(tmp_path) -> None:
    with subprocess.Popen([sys.executable, "-c", CLAIM_AND_DIE, str(tmp_path)]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        os.kill(child.pid, 0)
        with Claims(open_objects(tmp_path)) as ours:
            assert ours.take("train", 0)
    assert child.returncode == 9


def test_the_silent_claim_of_another_machine_is_taken_over_after_the_lease_and_a_renewed_one_is_not(tmp_path) -> None:
    objects = open_objects(tmp_path)

    def elsewhere(renewed: int) -> list[bytes]:
        return [json.dumps({"owner": "x", "host": "elsewhere", "pid": os.getpid(), "renewed": renewed}).encode()]

    objects.write(_key("train", 0, 0), elsewhere(0))
    with Claims(objects, lease=0.2) as ours:
        for renewal in range(6):
            objects.write(_key("train", 0, 0), elsewhere(renewal))
            assert not ours.take("train", 0)
            time.sleep(0.1)
        assert not ours.take("train", 0)
        time.sleep(0.3)
        assert ours.take("train", 0)


def test_a_writer_that_slept_through_its_lease_knows_that_it_lost_its_claim(tmp_path) -> None:
    objects = open_objects(tmp_path)
    sleeper = Claims(objects)  # not entered: nothing renews it
    assert sleeper.take("train", 0)
    objects.write(_key("train", 0, 1), [b"{}"])
    assert not sleeper.holds("train", 0)
    sleeper.release("train", 0)
    assert objects.names("claims/train/000000") == ["000000.json", "000001.json"]
