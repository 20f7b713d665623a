"""Clusters from short strings and from TOML: what they become, and every way to get one wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krzem.errors import (
    ClusterError,
    DataError,
    KrzemError,
    QuantityError,
    UnknownFactError,
    UnknownNameError,
)
from krzem.files import LARGEST_TOML
from krzem.hardware.catalogue import device_ids
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_keys import KEYS, MEASURED
from krzem.hardware.cluster_reader import cluster_of, read_cluster

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        path = tmp_path / "cluster.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


def test_the_short_form_takes_everything_from_the_catalogue() -> None:
    cluster = read_cluster("nvidia-h800-sxm:2048")
    assert cluster.device.id == "nvidia-h800-sxm"
    assert (cluster.devices, cluster.nodes, cluster.devices_per_node) == (2048, 256, 8)
    assert cluster.scale_up_domain == 8
    assert cluster.scale_up_bytes_per_s == pytest.approx(200e9)
    assert cluster.scale_out_bytes_per_s == pytest.approx(50e9)
    assert cluster.memory_bytes == cluster.device.memory_bytes
    assert cluster.oversubscription == 1.0
    assert cluster.name == "nvidia-h800-sxm:2048"


@pytest.mark.parametrize(
    ("text", "devices"),
    [("h800:2k", 2048), (" h800 : 2,048 ", 2048), ("h800:100 cards", 100), ("h800:3", 3)],
)
def test_counts_of_the_short_form(text: str, devices: int) -> None:
    assert read_cluster(text).devices == devices


def test_cards_of_two_dies_are_two_devices_each() -> None:
    cluster = read_cluster("910c:384 cards")
    assert cluster.devices == 768 == cluster.scale_up_domain
    assert cluster.nodes == 48
    assert read_cluster("910c:384").devices == 384


def test_a_file_overrules_the_catalogue(write: Write) -> None:
    cluster = read_cluster(
        write(
            """
            device = "h800"
            name = "our cluster"
            nodes = 256
            devices_per_node = 4
            scale_up_bandwidth = "160 GB/s"
            nics_per_node = 4
            nic_bandwidth = "200 Gbit/s"
            rails = 4
            oversubscription = "2:1"
            memory = "80 GiB"
            memory_bandwidth = "3 TB/s"
            host_memory = "2 TB"
            storage_bandwidth = "50 GB/s"
            price = "$1.80/h"
            power = "650 W"
            system_power_ratio = 1.4
            pue = 1.15
            device_days_between_interruptions = 2500
            restart_time = "12 min"
            [measured]
            bf16 = "620 TFLOP/s"
            scale_up_bandwidth = "150 GB/s"
            launch_time = "6us"
            """
        )
    )
    assert (cluster.devices, cluster.devices_per_node, cluster.scale_up_domain) == (1024, 4, 4)
    assert cluster.name == "our cluster"
    assert cluster.scale_up_bytes_per_s == pytest.approx(160e9)
    assert cluster.scale_out_bytes_per_s == pytest.approx(25e9)
    assert (cluster.rails, cluster.oversubscription) == (4, 2.0)
    assert cluster.memory_bytes == 80 * 2**30
    assert cluster.memory_bytes_per_s == pytest.approx(3e12)
    assert cluster.host_memory_bytes_per_device == pytest.approx(5e11)
    assert cluster.checkpoint_write_bytes_per_s == pytest.approx(50e9)
    assert cluster.usd_per_device_hour == pytest.approx(1.8)
    assert cluster.power_w == pytest.approx(650)
    assert (cluster.system_power_ratio, cluster.pue) == (1.4, 1.15)
    assert cluster.failures_per_device_day == pytest.approx(1 / 2500)
    assert cluster.restart_seconds == pytest.approx(720)
    assert dict(cluster.measured) == {
        "bf16_flops": pytest.approx(620e12),
        "scale_up_bytes_per_s": pytest.approx(150e9),
        "launch_seconds": pytest.approx(6e-6),
    }
    assert all(fact.confidence == "given" for fact in cluster.facts.values())
    assert {fact.source for fact in cluster.facts.values()} == {"cluster.toml"}


@pytest.mark.parametrize("key", sorted(KEYS))
def test_the_example_of_every_key_is_accepted(key: str, write: Write) -> None:
    sizes = {"devices", "cards", "nodes"}
    partner = {"nics_per_node": "nic_bandwidth", "nic_bandwidth": "nics_per_node"}
    named = "machine" if key == "machine" else "device"
    keys = {named, key, *([partner[key]] if key in partner else [])}
    keys |= set() if keys & sizes else {"devices"}
    read_cluster(write("\n".join(f"{name} = {KEYS[name].example}" for name in sorted(keys))))


@pytest.mark.parametrize("key", sorted(MEASURED))
def test_the_example_of_every_measured_key_is_accepted(key: str, write: Write) -> None:
    entry = MEASURED[key]
    name = entry.name
    text = f'device = "h100"\ndevices = 8\n[measured]\n{key} = {entry.example}'
    assert read_cluster(write(text)).measured[name] > 0


def test_a_stated_node_is_the_domain_where_the_catalogues_is() -> None:
    def domain(device: str, **more: int) -> int:
        return cluster_of({"device": device, "devices": 64, **more}).scale_up_domain

    assert domain("h100", devices_per_node=4) == 4
    assert domain("v100", devices_per_node=16) == 16
    assert domain("h100", devices_per_node=4, scale_up_domain=8) == 8
    assert domain("gb200", devices_per_node=4) == 72
    assert domain("a100-pcie-80", devices_per_node=4) == 2


def test_whole_cards_can_be_asked_for() -> None:
    cluster = cluster_of({"device": "mi250x", "devices": 64, "device_fraction": 1.0})
    assert cluster.device.fraction == 1.0
    assert cluster.devices_per_node == 4


def test_published_ranges_carry_their_source() -> None:
    cluster = read_cluster("h800:2048")
    failures = cluster.facts["failures_per_device_day"]
    assert (failures.low, failures.high) == (pytest.approx(1 / 5000), pytest.approx(1 / 2000))
    assert cluster.failures_per_device_day == failures.mid
    for name, fact in cluster.facts.items():
        assert fact.source, name
        assert getattr(cluster, name) == fact.mid
        assert fact.low <= fact.mid <= fact.high
    assert "arXiv 2412.19437" in cluster.facts["usd_per_device_hour"].source


def test_a_die_has_half_the_price_power_and_failures_of_its_card() -> None:
    dies = read_cluster("910c:768")
    cards = cluster_of({"device": "910c", "devices": 384, "device_fraction": 1})
    for name in ("usd_per_device_hour", "power_w", "failures_per_device_day"):
        die, card = getattr(dies, name), getattr(cards, name)
        assert 2 * die == pytest.approx(card), name


def test_what_nobody_published_stays_none_or_is_the_range_of_its_class() -> None:
    cluster = read_cluster("mi250x:1024")
    assert cluster.usd_per_device_hour is None
    assert "usd_per_device_hour" not in cluster.facts
    assert cluster.facts["failures_per_device_day"].basis == "class"
    assert read_cluster("h800:1024").facts["failures_per_device_day"].basis == "measured"


def test_storage_depends_on_the_size_of_the_cluster() -> None:
    small = read_cluster("h100:8").checkpoint_write_bytes_per_s
    large = read_cluster("h100:4096").checkpoint_write_bytes_per_s
    assert small is not None
    assert large is not None
    assert small < large


def test_an_unknown_quantity_stops_and_says_how_to_give_it(write: Write) -> None:
    with pytest.raises(UnknownFactError) as caught:
        read_cluster("huawei-ascend-970:64")
    message = str(caught.value)
    assert "memory" in message
    assert "ROADMAP" in message
    snippet = "\n".join(line for line in message.splitlines() if line.startswith("  "))
    assert read_cluster(write(snippet)).memory_bytes == 80 * 2**30


def test_a_link_that_nothing_crosses_may_be_unknown() -> None:
    assert read_cluster("google-tpu-v4:512").scale_out_bytes_per_s == pytest.approx(300e9)
    assert not read_cluster("google-tpu-v4:512").assumed
    assert not read_cluster("kunlunxin-p800:1").assumed
    assert set(read_cluster("google-tpu-v4:8192").assumed) == {"scale_out_bytes_per_s"}
    assert set(read_cluster("metax-c600:8").assumed) == {"scale_up_bytes_per_s"}


@pytest.mark.parametrize("name", device_ids())
@pytest.mark.parametrize("devices", [1, 8, 4096])
def test_every_device_makes_a_cluster_or_says_what_is_unknown(name: str, devices: int) -> None:
    try:
        cluster = read_cluster(f"{name}:{devices}")
    except UnknownFactError as error:
        assert "cluster.toml" in str(error)  # noqa: PT017
        return
    for field in ("memory_bytes", "memory_bytes_per_s", "scale_up_bytes_per_s"):
        assert getattr(cluster, field) > 0
    for field, bounds in cluster.assumed.items():
        assert 0 < bounds.low <= getattr(cluster, field) <= bounds.high
        assert bounds.why
        assert bounds.source


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("", ClusterError, "DEVICE:COUNT"),
        ("h800", ClusterError, "DEVICE:COUNT"),
        (":8", ClusterError, "DEVICE:COUNT"),
        ("h800:", ClusterError, "DEVICE:COUNT"),
        ("h800:0", QuantityError, "zero"),
        ("h800:-8", QuantityError, "negative"),
        ("h800:nan", QuantityError, "finite"),
        ("h800:8.5", QuantityError, "whole"),
        ("h800:1e12", QuantityError, "10,000,000"),
        ("h800:10M", QuantityError, "10,485,760 is more"),
        ("h800:8 boxes", ClusterError, "cards"),
        ("h900:8", UnknownNameError, "h800"),
        ("910c:9000k cards", ClusterError, "10,000,000"),
        ("nowhere.toml", DataError, "does not exist"),
        ("/dev/zero", ClusterError, "not a cluster"),
    ],
)
def test_bad_short_forms(text: str, error: type[KrzemError], says: str) -> None:
    with pytest.raises(error, match=says):
        read_cluster(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "device is missing"),
        ('device = "h800"', "size is missing"),
        ('device = "h800"\ndevices = 8\nnodes = 2', "nodes = 2 x 8 = 16"),
        ('device = "910c"\ncards = 8\ndevices = 8', "cards = 8 x 2 = 16"),
        ('device = "h800"\ndevices = 0', "devices: .*zero"),
        ('device = "h800"\ndevices = nan', "devices: .*finite"),
        ('device = "h800"\ndevices = inf', "devices: .*finite"),
        ('device = "h800"\ndevices = -1', "devices: .*negative"),
        ('device = "h800"\ndevices = 1e12', "more than the 10,000,000"),
        ('device = "h800"\nnodes = 9_000_000', "72,000,000"),
        ('device = "h800"\ndevices = [8]', "devices: .*not a number"),
        ('device = "h800"\ndevices = true', "devices: .*not a number"),
        ("device = 7\ndevices = 8", "device: .*text"),
        ('device = "h800"\ndevices = 8\nmemory = 80', "memory: .*unit is missing.*80 GiB"),
        ('device = "h800"\ndevices = 8\nmemory = "80 W"', "memory: .*'W' is not a unit"),
        ('device = "h800"\ndevices = 8\nprice = "2 EUR/h"', "price: .*not a unit.*USD"),
        ('device = "h800"\ndevices = 8\npue = 0.9', "pue: .*less than 1"),
        ('device = "h800"\ndevices = 8\nprise = "$2/h"', "prise: unknown key; did you mean price"),
        ('device = "h800"\ndevices = 8\nmeasured = 3', r"measured: .*\[measured\]"),
        ('device = "h800"\ndevices = 8\n[measured]\nbf17 = "1 TFLOP/s"', "measured.bf17: .*bf16"),
        ('device = "h800"\ndevices = 8\nnics_per_node = 8', "give both"),
        (
            'device = "h800"\ndevices = 8\nnics_per_node = 8\nnic_bandwidth = "400 Gbps"\n'
            'scale_out_bandwidth = "50 GB/s"',
            "keep one",
        ),
    ],
)
def test_bad_files_name_key_value_and_unit(write: Write, text: str, says: str) -> None:
    with pytest.raises(ClusterError, match=says) as caught:
        read_cluster(write(text))
    assert str(caught.value).startswith("cluster.toml")


def test_all_faults_of_a_file_are_reported_together(write: Write) -> None:
    text = 'device = "h800"\ndevices = 0\npower = "x"\ncolour = 1\n[measured]\nbf16 = 3'
    with pytest.raises(ClusterError, match="4 faults") as caught:
        read_cluster(write(text))
    for key in ("devices:", "power:", "colour:", "measured.bf16:"):
        assert key in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"device = ", "not valid TOML"),
        (b'device = "h800"\ndevice = "h100"', "not valid TOML"),
        (b"a = " + b"9" * 5000, "not valid TOML"),
        (b"a = " + b"[" * 20_000, "too deeply"),
        (b"devices = 0x" + b"f" * 5000, "1,000 digits"),
        (b"a." * 50_000 + b"a = 1", "more than 40 parts"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"#" * (LARGEST_TOML + 1), "at most 1,000,000"),
    ],
)
def test_hostile_files(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "cluster.toml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read_cluster(path)
    assert "\n" not in str(caught.value)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.toml"
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(DataError, match="1,073,741,824 bytes"):
        read_cluster(str(path))


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a file"):
        read_cluster(tmp_path)


def reads_or_refuses(read: Callable[[], Cluster]) -> None:
    try:
        cluster = read()
    except KrzemError as error:
        assert len(str(error)) < 6000  # noqa: PT017
        return
    assert 1 <= cluster.devices <= 10_000_000
    assert cluster.memory_bytes > 0


@given(st.text(max_size=60))
def test_any_text_is_a_cluster_or_a_clear_error(text: str) -> None:
    reads_or_refuses(lambda: read_cluster(text))


@given(
    st.sampled_from(["h800", "910c", "tpu-v4", "970", "rtx"]),
    st.text("0123456789kM.e- card", max_size=12),
)
def test_any_count_is_a_cluster_or_a_clear_error(device: str, count: str) -> None:
    reads_or_refuses(lambda: read_cluster(f"{device}:{count}"))


VALUES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["80 GiB", "400 Gbit/s", "$2/h", "2:1", "3h", "700 W", "h100", "910c"]),
    st.integers(-(10**40), 10**40),
    st.integers(1, 64),
    st.floats(),
    st.booleans(),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(sorted(MEASURED)), st.text(max_size=8), max_size=3),
)  # fmt: skip


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from([*KEYS, "measured", "devics", ""]), VALUES, max_size=8))
def test_any_settings_are_a_cluster_or_a_clear_error(values: dict[str, object]) -> None:
    reads_or_refuses(lambda: cluster_of({"device": "h100", "devices": 16, **values}))


@settings(max_examples=60)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_cluster_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(content)
    reads_or_refuses(lambda: read_cluster(path))


@pytest.mark.parametrize(
    "line",
    [
        'scale_up_bandwidth = "1e-20 B/s"',
        'scale_out_bandwidth = "1e25 B/s"',
        'memory_bandwidth = "1 B/s"',
        'memory = "1 B"',
        'memory = "1e25 B"',
        "oversubscription = 1e20",
        "rails = 1e20",
        'price = "$1e20/h"',
        'power = "1e20 W"',
        "pue = 1e6",
        'restart_time = "1e20 d"',
        'storage_bandwidth = "1 B/s"',
        '[measured]\nbf16 = "1 FLOP/s"',
        '[measured]\nlaunch_time = "2 d"',
        '[peak]\nbf16 = "1e25 FLOP/s"',
    ],
)
def test_what_no_machine_can_have_is_refused(write: Write, line: str) -> None:
    with pytest.raises(ClusterError, match=r"(more|less) than .* cannot be meant"):
        read_cluster(write(f'device = "h800"\ndevices = 8\n{line}\n'))


def test_a_peak_that_is_given_is_the_devices_peak(write: Write) -> None:
    cluster = read_cluster(
        write('device = "rtx-pro-6000d"\ndevices = 8\n[peak]\nbf16 = "120 TFLOP/s"\n')
    )
    assert cluster.device.peak_flops["bf16"] == 120e12
    assert cluster.facts["bf16_peak"].confidence == "given"
    assert "fp8_peak" not in cluster.facts


def test_a_measured_rate_stands_in_for_a_peak_and_never_exceeds_one(write: Write) -> None:
    head = 'device = "{}"\ndevices = 8\n[measured]\nbf16 = "{} TFLOP/s"\n'
    alone = read_cluster(write(head.format("rtx-pro-6000d", 90)))
    assert alone.device.peak_flops["bf16"] == 90e12
    known = read_cluster(write(head.format("h800", 650)))
    assert known.device.peak_flops["bf16"] == pytest.approx(989.4e12, rel=1e-3)
    with pytest.raises(ClusterError, match="more than the dense peak of 989"):
        read_cluster(write(head.format("h800", 1979)))


def test_power_measured_in_training_is_the_power_unless_one_is_stated(write: Write) -> None:
    head = 'device = "h800"\ndevices = 8\n'
    assert read_cluster(write(head + '[measured]\npower = "550 W"')).power_w == 550
    assert read_cluster(write(head + 'power = "600 W"\n[measured]\npower = "550 W"')).power_w == 600


@pytest.mark.parametrize("mark", ["\ufeff", ""])
def test_a_byte_order_mark_and_other_line_ends_do_not_matter(write: Write, mark: str) -> None:
    assert read_cluster(write(f'{mark}device = "h800"\r\ndevices = 8\r\n')).devices == 8
