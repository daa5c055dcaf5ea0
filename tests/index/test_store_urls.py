"""An index behind URLs: in memory, and on an S3 server of this machine."""

import sys

import pytest
import torch
from torch import nn

import tracin
from tracin import IndexingError, Projection, TracIn
from tracin.index.index import Index

pytest.importorskip("s3fs")
boto3 = pytest.importorskip("boto3")
server = pytest.importorskip("moto.server")

BUCKET = "tracin-tests"


def data(examples):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(examples, 5, generator=generator)
    return inputs, torch.randint(0, 3, (examples,), generator=generator)


TRAIN = data(40)


def run_of(seeds=(1, 2)):
    checkpoints = []
    for seed in seeds:
        torch.manual_seed(seed)
        checkpoints.append(tracin.Checkpoint(nn.Linear(5, 3).state_dict(), name=f"epoch {seed}"))
    return TracIn(nn.Linear(5, 3), "cross_entropy", checkpoints, learning_rates="equal")


def built(folder, run, train=TRAIN):
    return run.index(train, folder, Projection(16), shard_size=16, batch_size=16, recall_queries=0)


@pytest.fixture(scope="module")
def endpoint():
    running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def s3(endpoint, monkeypatch, tmp_path):
    """A bucket's URL; settings as a user would have them, in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=BUCKET)
    yield f"s3://{BUCKET}/{tmp_path.name}/index"
    sys.modules["s3fs"].S3FileSystem.clear_instance_cache()


@pytest.fixture(params=["memory", "s3"])
def url(request, tmp_path):
    if request.param == "memory":
        return f"memory://{tmp_path.name}/index"
    return request.getfixturevalue("s3")


def test_an_index_lives_behind_a_url(url, tmp_path):
    run = run_of()
    one = run_of(seeds=(1,))
    local = built(tmp_path / "local", run)

    built(url, one, tuple(column[:20] for column in TRAIN))
    built(url, one)  # rows are added
    index = built(url, run)  # a checkpoint is added

    assert index.verify().is_sound
    assert index.store.place.size("table.parquet")
    torch.testing.assert_close(
        index.with_run(run).influence(TRAIN), local.with_run(run).influence(TRAIN)
    )
    found, known = (each.with_run(run).explain(TRAIN, k=2) for each in (Index.open(url), local))
    assert (found.proponents.positions == known.proponents.positions).all()
    # Its shards end elsewhere, so its batches are of other sizes, whose rounding may differ.
    norms = (torch.from_numpy(each.table()["self_influence"]) for each in (index, local))
    torch.testing.assert_close(*norms)
    assert "complete" in str(index)

    left = index.drop("epoch 1")
    assert len(left.gc().files) == 4
    assert left.gc().files == ()
    assert [each.name for each in Index.open(url).store.manifest.checkpoints] == ["epoch 2"]


def test_what_is_lost_or_damaged_behind_a_url_is_built_again(url):
    run = run_of()
    store = built(url, run).store
    names = [name for name in store.place.names() if name.startswith("rows/")]
    whole = {name: bytes(store.place.read(name)) for name in store.place.names()}
    store.place.delete(names[0])
    store.place.write(names[1], whole[names[1]][:-3])
    flipped = bytearray(whole[names[2]])
    flipped[-3] ^= 1
    store.place.write(names[2], bytes(flipped))

    report = Index.open(url).verify()
    assert report.missing == (names[0],)
    assert set(report.problems) == set(names[1:3])
    store.place.write(names[0], whole[names[0]])
    store.place.write(names[1], whole[names[1]])
    with pytest.raises(IndexingError, match=r"cannot be read .* tracin index verify"):
        _ = [each.rows() for each in Index.open(url).store.shards(names[2].split("/")[1])]
    store.place.delete(names[0])
    store.place.write(names[1], whole[names[1]][:-3])
    store.place.delete(names[2])
    built(url, run)

    assert {name: bytes(store.place.read(name)) for name in store.place.names()} == whole


def test_a_missing_bucket_is_told(s3):
    other = s3.replace(BUCKET, "no-such-bucket")

    with pytest.raises(IndexingError, match=r"no-such-bucket.* cannot be written: .*bucket"):
        built(other, run_of())
    with pytest.raises(IndexingError, match="holds no index"):
        Index.open(other)


def test_wrong_credentials_are_told(s3, endpoint, monkeypatch):
    # Moto knows users and what they may do only once it is told to, after so many requests.
    import requests

    built(s3, run_of())
    sys.modules["s3fs"].S3FileSystem.clear_instance_cache()
    requests.post(f"{endpoint}/moto-api/reset-auth", data="0", timeout=5)
    try:
        with pytest.raises(IndexingError, match=r"s3://.*manifest\.json cannot be looked up: "):
            Index.open(s3)
    finally:
        requests.post(f"{endpoint}/moto-api/reset-auth", data="inf", timeout=5)


def test_no_credentials_are_told(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    sys.modules["s3fs"].S3FileSystem.clear_instance_cache()

    with pytest.raises(IndexingError, match=r"cannot be (looked up|written): .*credentials"):
        built(s3, run_of())


def test_an_unknown_protocol_is_told():
    with pytest.raises(IndexingError, match="nothing://there/index cannot be opened: "):
        Index.open("nothing://there/index")
