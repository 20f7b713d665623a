"""Whatever is typed, the command line answers or refuses; an exception that escapes it fails."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.command_line import say

ANY = st.text(max_size=40)
NUMBERISH = st.from_regex(r"[-+]?[0-9_,.]{0,12}([eE][-+]?[0-9]{1,4})?\s?[a-zA-Z/%$]{0,6}",
                          fullmatch=True)  # fmt: skip
QUANTITY = ANY | NUMBERISH | st.integers().map(str) | st.floats().map(str)
DEGREE = st.sampled_from(["tp", "cp", "pp", "vpp", "ep", "etp", "dp", "mbs", "zero", "shard", "sp",
                          "schedule", "first", "last", "recompute", "rlayers", "cpkind",
                          "offload"])  # fmt: skip
VALUE = st.integers(-1, 33).map(str) | st.sampled_from(
    ["1f1b", "interleaved", "zb-h1", "zb-v", "dualpipe", "dualpipev", "full", "modules", "a2a"]
)
LAYOUT = st.lists(st.tuples(DEGREE, VALUE), max_size=5).map(
    lambda parts: ",".join(f"{name}={value}" for name, value in parts)
)
CLUSTER = st.sampled_from(["h100", "910c", "mi250x", "v100", "h20"]).flatmap(
    lambda device: st.integers(1, 64).map(lambda count: f"{device}:{count}")
)
OPTIONS = st.dictionaries(
    st.sampled_from(["--tokens", "--seq", "--batch-tokens", "--precision", "--optimizer",
                     "--state-bytes", "--deadline", "--budget", "--start", "--engine", "--date"]),
    QUANTITY,
    max_size=3,
)  # fmt: skip


def survives(*arguments: str) -> None:
    said = say(*arguments)
    assert said.code in (0, 2)
    assert (said.code == 0) == (said.err == "")
    if said.code == 0:
        assert "nan" not in said.out.lower().replace("tenant", "")
        assert all(len(line) <= 100 for line in said.out.splitlines())


@settings(max_examples=60)
@given(st.lists(ANY, max_size=5))
def test_any_words(words: list[str]) -> None:
    assert say(*words).code in (0, 2)


@settings(max_examples=60)
@given(ANY | CLUSTER, LAYOUT | ANY, OPTIONS)
def test_any_cluster_layout_and_option(on: str, layout: str, options: dict[str, str]) -> None:
    written = [f"{name}={value}" for name, value in options.items()]
    survives("explain", "qwen3-0.6b", f"--on={on}", f"--layout={layout}", "--batch=32", *written)


@settings(max_examples=80)
@given(st.sampled_from(["qwen3-30b-a3b", "deepseek-v4-flash", "gpt-oss-20b", "gpt3-175b"]),
       CLUSTER, LAYOUT, st.integers(1, 10**9))  # fmt: skip
def test_any_layout_of_any_model(model: str, on: str, layout: str, batch: int) -> None:
    survives("explain", model, f"--on={on}", f"--layout={layout}", f"--batch={batch}",
             "--tokens=1000T", "--seq=2048", "--precision=fp16")  # fmt: skip


@settings(max_examples=15)
@given(CLUSTER, st.integers(1, 200), st.integers(1, 5000))
def test_any_small_search(on: str, batch: int, sequence: int) -> None:
    survives("plan", "qwen3-0.6b", f"--on={on}", f"--batch={batch}", f"--seq={sequence}")
