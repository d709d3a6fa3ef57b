"""sparseflow-trt policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.plugin_lookup import judge_with_plugin
from sparseflow_trt.policies.policy import find_policy
from tests.made_policies import make_points, make_policy

if TYPE_CHECKING:
    from tests.commands import Sparseflow


def test_list(sparseflow: Sparseflow) -> None:
    ended = sparseflow("policy", "list")
    assert (ended.code, ended.err) == (0, "")
    assert "a100-80gb" in ended.out
    listed = sparseflow("policy", "list", "--json").json
    assert "a100-80gb" in [policy["name"] for policy in listed]
    (a100,) = (policy for policy in listed if policy["name"] == "a100-80gb")
    assert (a100["points"], a100["types"]) == (20, ["torch FP16"])


def test_show(sparseflow: Sparseflow) -> None:
    ended = sparseflow("policy", "show", "a100-80gb")
    assert ended.code == 0
    assert "gate_up, torch FP16: sparse from M=256" in ended.out
    assert "Provenance: shipped" in ended.out
    assert "Margin:     2%, by which sparse has to be faster\n" in ended.out
    assert "Spreads:    1.5 standard deviations are subtracted" in ended.out
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert [line for line in lines if line.startswith(("gate_up ", "down "))] == [
        "gate_up 14336 4096 torch FP16 sparse 256–4096 5 of 5 256–4096 1.33× 256",
        "down 4096 14336 torch FP16 sparse 256–4096 4 of 5 512–4096 1.25× 1024",
    ]
    ended = sparseflow("policy", "show", "a100-80gb", "--points")
    assert len([line for line in ended.out.splitlines() if line.endswith("×")]) == 10
    shown = sparseflow("policy", "show", "a100-80gb", "--json").json
    assert shown["points"]
    assert shown["provenance"] == "shipped"


def test_show_of_a_file_with_intervals_and_filters(sparseflow: Sparseflow, own_folder: Path) -> None:
    points = [
        p.model_copy(update={"low_us": p.us - 1, "high_us": p.us + 1})
        for p in [
            *make_points("o", 64, 64, {8: 1.5}),
            *make_points("down", 64, 32, {4: 0.8}, "BF16", "torch"),
        ]
    ]
    alone = make_points("qkv", 64, 32, {2: 3.0})[0]
    policy = make_policy([*points, alone], limits={"o": (8, 64), "down": (None, None)})
    (own_folder / "mine.json").write_text(policy.model_dump_json())
    lines = sparseflow("policy", "show", "mine.json", "--points").out.splitlines()
    assert [" ".join(line.split()) for line in lines[-3:]] == [
        "o 64 64 tensorrt FP16 8 15.00 14.00–16.00 sparse 10.00 9.00–11.00 1.50×",
        "down 64 32 torch BF16 4 8.00 7.00–9.00 sparse 10.00 9.00–11.00 0.80×",
        "qkv 64 32 tensorrt FP16 2 30.00",
    ]
    assert "  o, tensorrt FP16: sparse from M=8 to 64" in lines
    assert "  down, tensorrt FP16: dense" in lines
    for option, kinds in (
        (("--library", "torch"), {"down"}), (("--dtype", "fp16"), {"o", "qkv"}), (("--kind", "qkv"), {"qkv"}),
        (("--n", 64, "--k", 64), {"o"}), (("--k", 32), {"down", "qkv"}),
    ):  # fmt: skip
        shown = sparseflow("policy", "show", "mine.json", *option, "--json").json
        assert {point["kind"] for point in shown["points"]} == kinds


def test_a_plot(sparseflow: Sparseflow, own_folder: Path) -> None:
    ended = sparseflow("policy", "show", "a100", "--plot", "a100.png")
    assert (ended.code, ended.err) == (0, "")
    assert "Drawn: a100.png (torch FP16)." in ended.out
    assert (own_folder / "a100.png").read_bytes().startswith(b"\x89PNG")
    both = [*make_points("o", 64, 64, {8: 2.0}, "BF16"), *make_points("o", 64, 64, {8: 2.0}, library="torch")]
    (own_folder / "mine.json").write_text(make_policy(both).model_dump_json())
    ended = sparseflow("policy", "show", "mine.json", "--plot", "mine.svg")
    assert "Drawn: mine.svg (tensorrt BF16). The others: --library torch --dtype FP16." in ended.out
    ended = sparseflow("policy", "show", "mine.json", "--plot", "mine.svg", "--library", "torch")
    assert "Drawn: mine.svg (torch FP16)." in ended.out
    ended = sparseflow("policy", "show", "mine.json", "--kind", "down", "--plot", "x.png")
    assert ended.error == "policy 'mine' holds nothing to draw: no product was measured dense and sparse."
    assert "`sparseflow-trt policy show mine.json` lists what it holds." in ended.err
    assert "is not a plot's file name" in sparseflow("policy", "show", "a100", "--plot", "a100.gif").error


def test_points_of_the_plugin_are_listed_and_drawn(sparseflow: Sparseflow, own_folder: Path) -> None:
    points = [
        p.model_copy(update={"kernel": "plugin"}) if p.kernel == "sparse" else p
        for p in make_points("o", 64, 64, {8: 2.0})
    ]
    (own_folder / "mine.json").write_text(make_policy(points).model_dump_json())
    ended = sparseflow("policy", "show", "mine.json", "--plot", "mine.svg", "--points")
    assert "o 64 64 tensorrt FP16 8 20.00 plugin 10.00 2.00×" in " ".join(ended.out.split())
    assert "Drawn: mine.svg (tensorrt FP16)." in ended.out
    assert "dense / plugin" in (own_folder / "mine.svg").read_text(encoding="utf-8")


def test_ask(sparseflow: Sparseflow) -> None:
    product = ("policy", "ask", "a100", "--kind", "down", "--n", 4096, "--k", 14336)
    ended = sparseflow(*product, "--m", 600)
    assert ended.out.startswith("sparse: sparse wins at M=600: 1.21× between M=512 and M=1024 (14336→4096, ")
    assert len(ended.out.splitlines()) == 4
    asked = sparseflow(*product, "--m", 256, "--json").json
    assert (asked["sparse"], asked["basis"], len(asked["points"])) == (False, "exact", 2)
    ended = sparseflow(*product, "--m", 600, "--dtype", "bf16")
    assert ended.out == "dense: no measurement of BF16 in policy 'a100-80gb'\n"
    ended = sparseflow("policy", "ask", "a100", "--kind", "conv", "--n", 64, "--k", 64, "--m", 8)
    assert ended.out == "dense: no measurement near 64→64 of kind 'conv' in policy 'a100-80gb'\n"
    ended = sparseflow(*product, "--m", 600, "--dtype", "fp32")
    assert ended.out.startswith("dense: FP32 runs dense: "), "as a plan says it, and not that nobody measured"
    assert "0 is not in the range" in sparseflow(*product, "--m", 0).error


def test_ask_shows_what_a_learned_answer_rests_on(sparseflow: Sparseflow) -> None:
    product = ("policy", "ask", "h100", "--library", "torch", "--kind", "gate_up", "--n", 17408, "--k", 5120)
    lines = sparseflow(*product, "--m", 1024).out.splitlines()
    assert "learned from 35 measured shapes" in lines[0]
    weights = [float(line.split()[-1].rstrip("%")) for line in lines[3:]]
    assert len(weights) == 8
    assert weights == sorted(weights, reverse=True)
    assert lines[1] == f"The products that weigh most in the trees' mean, together {sum(weights):.0f}% of it:"
    asked = sparseflow(*product, "--m", 200_000, "--json").json
    assert "as at M=16384, the largest measured, learned" in asked["reason"]
    assert len(asked["points"]) == 2 * len(asked["shares"]) == 16
    assert (
        sparseflow(
            "policy", "ask", "a100", *product[5:7], "--n", 14336, "--k", 4096, "--m", 512, "--json"
        ).json["shares"]
        == []
    )


def test_ask_mentions_the_plugin_where_it_gains_and_sparse_does_not(sparseflow: Sparseflow) -> None:
    product = ("policy", "ask", "h200", "--kind", "down", "--n", 4096, "--k", 14336)
    said = sparseflow(*product, "--m", 1024).out
    assert said.startswith("dense: ")
    measured = judge_with_plugin(find_policy("h200"), Gemm("down", 4096, 14336, "FP16"), 1024)
    assert measured.speedup is not None
    assert f"In its place: the plugin wins at M=1024: {measured.speedup:.2f}× measured (14336→4096, " in said
    asked = sparseflow(*product, "--m", 1024, "--json").json
    assert (asked["sparse"], asked["plugin_would_gain"][:10]) == (False, "the plugin")
    assert "In its place" not in sparseflow(*product, "--m", 1024, "--plugin").out
    assert "In its place" not in sparseflow(*product, "--m", 1024, "--library", "torch").out
    gate = ("policy", "ask", "h200", "--kind", "gate_up", "--n", 14336, "--k", 4096, "--m", 130)
    padded = "In its place: with M padded to a multiple of 8 the plugin wins at M=136: 1.47× "
    assert padded in sparseflow(*gate).out
    lost = sparseflow(*gate, "--plugin").out.splitlines()[0]
    assert lost.startswith(
        "dense: the plugin does not win by 5% at M=130, which is no multiple of 8: 0.49×; of a "
    )
    assert lost.endswith("; pad M to 136, where it wins")
    assert "In its place" not in sparseflow(*gate, "--dtype", "int8").out
    refused = sparseflow(*product, "--m", 1024, "--library", "torch", "--plugin")
    assert (refused.code, "leave out --library torch" in refused.error) == (2, True)


def test_ask_says_dense_of_what_cannot_be_2to4(sparseflow: Sparseflow) -> None:
    asked = ("policy", "ask", "h200", "--kind", "qkv", "--m", 16384)
    torch = ("--library", "torch")
    for product, says in (
        (("--n", 4096, "--k", 1001, *torch), "cannot be 2:4: K=1001 is not a multiple of 4"),
        (("--n", 4096, "--k", 1001), "cannot be 2:4: K=1001 is not a multiple of 4"),
        (("--n", 4096, "--k", 12), "cannot be 2:4: too small: K=12, a sparse FP16 instruction takes 16"),
        (("--n", 4096, "--k", 1001, "--plugin"), "cannot be 2:4: K=1001 is not a multiple of 4"),
        (
            ("--n", 3001, "--k", 4096, "--plugin"),
            "cannot run in the plugin: N=3001 and K=4096 are not both multiples of 16",
        ),
        (
            ("--n", 3001, "--k", 4096, *torch),
            "cannot run in cuSPARSELt: N=3001 and K=4096 are not both multiples of 16",
        ),
    ):
        assert sparseflow(*asked, *product).out == f"dense: {says}\n"
        said = sparseflow(*asked, *product, "--json").json
        assert (said["sparse"], said["kernel"], said["points"], said["plugin_would_gain"]) == (
            False, "dense", [], "",
        )  # fmt: skip


def test_ask_lists_the_nearest_of_very_many_points(sparseflow: Sparseflow) -> None:
    asked = ("policy", "ask", "h200", "--kind", "gate_up", "--n", 400_000, "--k", 400_000, "--m", 700)
    _, _, *rows, last = sparseflow(*asked, "--library", "torch").out.splitlines()
    assert len(rows) == 20
    assert all(512 <= int(row.split()[5]) <= 956 for row in rows)
    points = sparseflow(*asked, "--library", "torch", "--json").json["points"]
    assert last == f"and {len(points) // 2 - 20} more, further from M=700 (--json has all)"


def test_ask_says_that_a_threshold_has_no_points(sparseflow: Sparseflow) -> None:
    asked = ("policy", "ask", "h200", "--kind", "down", "--n", 320, "--k", 12800, "--m", 512)
    assert sparseflow(*asked).out.splitlines()[1:2] == [
        "There are no points behind this threshold: it was given, and not derived from any."
    ]


def test_ask_names_the_kernel(sparseflow: Sparseflow) -> None:
    product = ("--kind", "down", "--n", 4096, "--k", 14336, "--m", 1024, "--json")
    for options, kernel in (((), "dense"), (("--library", "torch"), "sparse"), (("--plugin",), "plugin")):
        said = sparseflow("policy", "ask", "h200", *product, *options).json
        assert (said["kernel"], said["sparse"]) == (kernel, kernel != "dense")


def test_json_has_the_file_whole_or_what_was_chosen(sparseflow: Sparseflow) -> None:
    from sparseflow_trt.policies.policy import find_policy

    whole = find_policy("h200").model_dump(mode="json")
    assert sparseflow("policy", "show", "h200", "--json").json == whole
    for library, n, k in (("tensorrt", 2048, 5632), ("torch", 2048, 5632), ("torch", 4096, 14336)):
        shape = ("--n", n, "--k", k, "--library", library, "--json")
        found = sparseflow("policy", "show", "h200", *shape).json
        assert {(p["library"], p["n"], p["k"]) for p in found["points"]} == {(library, n, k)}
        limits = [t for t in whole["thresholds"] if (t["library"], t["kind"]) == (library, "down")]
        assert found["thresholds"] == [t for t in limits if not t["shapes"] or [n, k] in t["shapes"]] != []


IMPORT = ("--name", "old", "--device", "NVIDIA A100", "--compute-capability", "8.0")


def test_import_limits(sparseflow: Sparseflow, own_folder: Path) -> None:
    (own_folder / "seed.json").write_text('{"ops": {"gate_proj": {"min_m": 256, "max_m": 2048}}}')
    ended = sparseflow("policy", "import", "seed.json", *IMPORT, "-o", "my old.json")
    assert (ended.code, ended.err) == (0, "")
    assert "gate_up, torch FP16: sparse from M=256 to 2048" in ended.out
    assert "Plan with it: sparseflow-trt plan MODEL --policy 'my old.json'\n" in ended.out
    assert sparseflow("policy", "show", "my old.json", "--json").json["provenance"] == "imported"


def test_import_times(sparseflow: Sparseflow, own_folder: Path) -> None:
    (own_folder / "seed.csv").write_text(
        "op,M,pruned_dense_us,sparse_weight_us,speedup\ndown_proj,256,165.21,169.20,0.976\n"
        "down_proj,512,323.19,269.83,1.198\n"
    )
    command = ("policy", "import", "seed.csv", *IMPORT, "-o", "old.json")
    assert "whose N and K are not given" in sparseflow(*command).error
    assert not (own_folder / "old.json").exists()
    shown = sparseflow(*command, "--shape", "down_proj=4096,14336", "--json").json
    assert [point["us"] for point in shown["points"]] == [165.21, 169.2, 323.19, 269.83]
    assert [limit["min_m"] for limit in shown["thresholds"]] == [512]
    assert json.loads((own_folder / "old.json").read_text())["points"][0]["n"] == 4096


def test_a_speedup_that_is_not_that_of_its_times_is_refused(sparseflow: Sparseflow, own_folder: Path) -> None:
    command = ("policy", "import", "seed.csv", *IMPORT, "--shape", "down_proj=4096,14336", "-o", "old.json")
    head = "op,M,pruned_dense_us,sparse_weight_us,speedup\ndown_proj,256,165.21,169.20,0.976\n"
    for said in ("1.198", "1.2", "1.20", " 1.19", "", "1"):  # rounded, or not given
        (own_folder / "seed.csv").write_text(head + f"down_proj,512,323.19,269.83,{said}\n")
        assert sparseflow(*command).code == 0, said
    (own_folder / "old.json").unlink()
    for said in ("0.835", "1.31", "2", "fast", "nan", "1.3x"):
        (own_folder / "seed.csv").write_text(head + f"down_proj,512,323.19,269.83,{said}\n")
        assert sparseflow(*command).error == (
            f"seed.csv, line 3 gives the speedup {said}, but 323.19 µs dense over 269.83 µs sparse are 1.198."
        )
    assert not (own_folder / "old.json").exists()


@pytest.mark.parametrize("shape", ["down_proj", "down_proj=4096", "=1,2", "a=1,2,3", "a=x,2", "a=-1,2"])
def test_a_shape_that_is_none(sparseflow: Sparseflow, shape: str) -> None:
    ended = sparseflow("policy", "import", "seed.csv", *IMPORT, "-o", "old.json", "--shape", shape)
    assert ended.code == 2
    assert f"'{shape}' is not OP=N,K" in ended.error


def test_an_import_does_not_replace_its_source(sparseflow: Sparseflow, own_folder: Path) -> None:
    (own_folder / "seed.json").write_text('{"down_proj": {"min_m": 8}}')
    ended = sparseflow("policy", "import", "seed.json", *IMPORT, "-o", "seed.json")
    assert ended.error == "seed.json is the file to import itself."
    assert "ops" not in (own_folder / "seed.json").read_text()
    assert (
        "cannot be written" in sparseflow("policy", "import", "seed.json", *IMPORT, "-o", "no/old.json").error
    )


def test_an_unknown_one_names_those_that_are_there(sparseflow: Sparseflow) -> None:
    ended = sparseflow("policy", "show", "mine")
    assert ended.error == "there is no policy 'mine'."
    assert "a100-80gb" in ended.err
    product = ("--kind", "down", "--n", 4096, "--k", 14336, "--m", 700)
    assert (
        "`sparseflow-trt autotune MODEL -o FILE` measures one"
        in sparseflow("policy", "ask", "l40s", *product).err
    )


def test_a_mistyped_kind_is_named_with_those_that_there_are(sparseflow: Sparseflow) -> None:
    product = ("--n", 4096, "--k", 14336, "--m", 700)
    for command in (("ask", "a100", *product), ("show", "a100")):
        said = sparseflow("policy", *command, "--kind", "dwn").error
        assert "'dwn' is not a kind of layer. Did you mean down? Known: gate_up, down, qkv" in said


def test_a_filter_that_leaves_nothing_says_what_there_is(sparseflow: Sparseflow) -> None:
    ended = sparseflow("policy", "show", "a100", "--dtype", "bf16")
    assert ended.error == "policy 'a100-80gb' holds nothing for that library, type, kind and shape."
    assert "It holds torch FP16;" in ended.err


def test_show_of_thresholds_alone_has_no_empty_table(sparseflow: Sparseflow, own_folder: Path) -> None:
    policy = make_policy([], limits={"o": (8, 64)})
    (own_folder / "mine.json").write_text(policy.model_dump_json())
    shown = sparseflow("policy", "show", "mine.json").out
    assert shown.endswith("\nWhere no measured shape is near:\n  o, tensorrt FP16: sparse from M=8 to 64\n")


def test_show_is_short_and_points_lists_all_times(sparseflow: Sparseflow) -> None:
    short = sparseflow("policy", "show", "h200").out
    assert len(short.splitlines()) < 200
    assert "gate_up, torch FP16: sparse from M=6144 (of 19 shapes)" in short
    only = ("--n", 14336, "--k", 4096, "--library", "torch", "--dtype", "bf16")
    whole = sparseflow("policy", "show", "h200", "--points", *only).out
    held = sparseflow("policy", "show", "h200", *only, "--json").json
    assert len([line for line in whole.splitlines() if line.endswith("×")]) == len(held["points"]) / 2 > 20
    for words in (held["source"], held["clocks"]):
        assert len(words) > 1000
        assert words[:200] in " ".join(whole.split())
        assert words not in whole


def test_show_says_of_each_m_what_ask_says(sparseflow: Sparseflow) -> None:
    only = ("h200", "--library", "torch", "--dtype", "fp16", "--kind", "gate_up", "--n", 14336, "--k", 4096)
    row = " ".join(sparseflow("policy", "show", *only).out.splitlines()[-1].split())
    assert " 1–16384 21 of 21 1–128, 657–768, 817–16384 and 5 more " in row
    product = [value for value in only if value != "show"]
    for m, sparse in ((128, True), (150, False), (700, True), (790, False), (900, True)):
        assert sparseflow("policy", "ask", *product, "--m", m, "--json").json["sparse"] is sparse


def test_the_list_has_a_line_or_two_for_each(sparseflow: Sparseflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    listed = sparseflow("policy", "list", "--json").json
    assert any(len(policy["source"]) > 120 for policy in listed)
    assert len(sparseflow("policy", "list").out.splitlines()) <= 3 + 6 * len(listed)


def test_sources_stand_below_the_list_where_it_is_narrow(terminal: Sparseflow) -> None:
    lines = terminal("policy", "list").out.splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.startswith("h200"))
    assert row.split()[-1] == "[3]"
    assert any(line.startswith("[3] ") for line in lines)


def test_the_plugin_is_asked_for_by_itself(sparseflow: Sparseflow) -> None:
    asked = ("policy", "ask", "a100-80gb", "--kind", "down", "--n", 4096, "--k", 14336, "--m", 1024)
    said = " ".join(sparseflow(*asked, "--plugin").out.split())
    assert said.startswith(
        "plugin: the plugin wins at M=1024: 1.25× timed (14336→4096, estimated from cuSPARSELt"
    )
    said = " ".join(sparseflow(*asked[:-1], 256, "--plugin").out.split())
    assert said.startswith("dense: the plugin does not win by 15% at M=256")


def test_of_several_points_the_fastest_is_shown_and_counts(sparseflow: Sparseflow, own_folder: Path) -> None:
    once, again = make_points("o", 64, 64, {8: 1.0}), make_points("o", 64, 64, {8: 3.0})[0]
    (own_folder / "mine.json").write_text(make_policy([*once, again]).model_dump_json())
    shown = sparseflow("policy", "show", "mine.json", "--points").out
    assert shown.splitlines()[-1].split()[6:] == ["10.00", "sparse", "10.00", "1.00×"]
    asked = sparseflow("policy", "ask", "mine.json", "--kind", "o", "--n", 64, "--k", 64, "--m", 8).out
    assert asked.startswith("dense: sparse does not win by 2% at M=8: 1.00× measured")


def test_a_policy_that_holds_nothing_is_said_to(sparseflow: Sparseflow, own_folder: Path) -> None:
    (own_folder / "mine.json").write_text(make_policy([]).model_dump_json())
    ended = sparseflow("policy", "show", "mine.json")
    assert ended.error == "policy 'mine' holds no points and no thresholds, so every layer is dense."
    assert "`sparseflow-trt autotune MODEL -o FILE` measures one" in ended.err


def test_an_m_that_no_dimension_can_have_is_refused(sparseflow: Sparseflow) -> None:
    ended = sparseflow("policy", "ask", "h200", "--kind", "o", "--n", 64, "--k", 64, "--m", 2**31)
    assert ended.code == 2


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (("--name", " "), "Invalid value for --name: it is empty"),
        (("--device", ""), "Invalid value for --device: it is empty"),
        (("--shape", "down_proj=1,2", "--shape", "down_proj=2,1"), "'down_proj' is given two shapes"),
    ],
)
def test_what_an_import_is_not_told_twice_or_not_at_all(
    sparseflow: Sparseflow, own_folder: Path, changed: tuple[str, ...], says: str
) -> None:
    (own_folder / "seed.json").write_text('{"down_proj": {"min_m": 8}}')
    ended = sparseflow("policy", "import", "seed.json", *IMPORT, *changed, "-o", "old.json")
    assert ended.code == 2
    assert says in ended.error
