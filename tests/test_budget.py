"""A run says how long it takes, and one without named analyses fits its budget."""

import time
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import interp
import interp.cli.progress as shown
from interp import cli
from interp.analyses.block_influence import BlockInfluence
from interp.analyses.depth_map import DepthMap
from interp.analyses.integrated_gradients import IntegratedGradients
from interp.analyses.residual_erasure import ResidualErasure
from interp.analysis import Cost, usable_shards
from interp.cli.progress import Watch, watching
from interp.errors import AnalysisError, RunError
from interp.figures.words import duration
from interp.reports.gather import gather
from interp.runs import Study, estimate_costs, execute
from interp.runs.budget import fitting, share_of_next
from interp.runs.costs import Pricing
from interp.runs.folder import Cell
from interp.runs.memory import peak_mb, resident_mb, return_large_blocks
from interp.runs.plan import PlannedCell, Spent
from interp.runs.progress import Standing, WorkLeft
from interp.runs.speed import Pace, Speed, measure_speed
from interp.sweeps.lens import LOGITS_HELD
from tests.documents import read

HOPS = "zoo/hops-4l"
SOME: dict[str, dict[str, Any]] = {
    "block_influence": {},
    "residual_erasure": {},
    "integrated_gradients": {},
}


def asked(budget: float | None, **more: Any) -> Study:
    return Study((HOPS,), ("two-hop",), SOME, n=20, only_fitting=True, budget=budget, **more)


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every token take a tenth of a second, so that prices do not depend on the machine."""
    always = Speed({5: Pace(0.0, 0.1)}, 2.0)
    monkeypatch.setattr("interp.runs.worker.measure_speed", lambda *_: always)


# What fits


@pytest.mark.parametrize(
    ("prices", "seconds", "chosen"),
    [
        ([[5.0], [5.0]], 10.0, [0, 0]),
        ([[5.0], [6.0]], 10.0, [0, None]),
        ([[90.0, 40.0, 8.0], [6.0, 3.0], [1.0]], 15.0, [2, 0, 0]),  # the dearest stays shrunk
        ([[90.0, 40.0, 8.0], [6.0, 3.0], [1.0]], 50.0, [1, 0, 0]),
        ([[90.0], [6.0, 3.0], [1.0]], 50.0, [None, 0, 0]),  # what is after it still fits
        ([[3.0], [90.0, 9.0], [5.0]], 9.0, [0, None, 0]),
        ([[1.0]], 0.0, [None]),
    ],
)
def test_what_fits_is_taken_in_order_and_the_dearest_is_shrunk_most(
    prices: list[list[float]], seconds: float, chosen: list[int | None]
) -> None:
    assert fitting(prices, seconds) == chosen


def test_tasks_share_what_those_before_did_not_take() -> None:
    study = Study(("a", "b"), ("t", "u"), {}, only_fitting=True, budget=10.0)
    assert share_of_next(study, 0, seconds=0.0) == 2.5
    assert share_of_next(study, 1, seconds=60.0) == 3
    assert share_of_next(study, 3, seconds=3600.0) == 2.5 / 4  # the others took all
    assert share_of_next(Study(("a",), ("t",), {}), 0, seconds=0.0) is None


def test_prompts_of_a_budget_are_drawn_one_within_another() -> None:
    task, study = interp.load_task("two-hop", n=50), asked(1.0)
    levels = [[prompt.id for prompt in part.prompts] for part in study.levels(task)]
    assert [len(part) for part in levels] == [8, 8, 16, 18]
    assert sorted(chain(*levels)) == sorted(prompt.id for prompt in task.prompts)
    assert [len(part) for part in study.levels(interp.load_task("two-hop", n=17))] == [8, 9]
    assert asked(None).levels(task) == [task]


# How long


def test_two_sizes_of_pass_are_timed_and_logits_and_the_way_back_is_a_multiple() -> None:
    model = interp.load_model(HOPS)
    (shard,) = model.shards(interp.load_task("two-hop", n=20))[:1]
    batch = model.tokenize(shard)
    n_pos, n_rows = batch.tokens.shape[1], 256 // batch.tokens.shape[1]
    # 1 s there, half for a single row, 4 s there and back; 2 and 65 s of logits for 1 and 64 rows
    ticks = iter([10.0, 11.0, 20.0, 20.5, 30.0, 34.0, 40.0, 42.0, 50.0, 115.0])
    speed = measure_speed(model, [batch], clock=lambda: next(ticks))
    assert speed.backward == 3.0
    assert speed.logits.seconds(10, calls=3) == pytest.approx(3 * 1.0 + 10 * 1.0)
    assert speed.passes[n_pos].each == pytest.approx(0.5 / (n_pos * (n_rows - 1)))
    assert speed.passes[n_pos].seconds(n_pos * n_rows, calls=1) == pytest.approx(1.0)
    assert (speed.tokens, speed.rows) == (model.tokens_at_once(), LOGITS_HELD // model.d_vocab)


def test_what_grows_with_nothing_has_no_start() -> None:
    assert Pace.of((1, 2.0), (64, 1.0)) == Pace(0.0, 1.0 / 64)
    assert Pace.of((64, 1.0), (64, 1.0)) == Pace(0.0, 1.0 / 64)
    assert Pace.of((1, 1.0), (64, 64.0)) == Pace(0.0, 1.0)
    assert Pace.of((1, 1.0), (64, 1.0 + 63 * 0.5)) == Pace(0.5, 0.5)


def test_seconds_are_passes_times_tokens_and_lengths_are_interpolated() -> None:
    model = interp.load_model(HOPS)
    (shard,) = model.shards(interp.load_task("two-hop", n=20))[:1]
    batch = model.tokenize(shard)
    n_pos, tokens = batch.tokens.shape[1], batch.tokens.numel()
    passes = {n_pos - 1: Pace(0.0, 1.0), n_pos + 1: Pace(0.0, 3.0)}
    speed = Speed(passes, 4.0)
    assert speed.seconds_of([Cost(9.0, 0)], [batch]) == pytest.approx(2.0 * tokens * 10)
    assert speed.seconds_of([Cost(9.0, 0, backwards=3.0)], [batch]) == 2.0 * tokens * (10 + 9)
    half = Cost(9.0, 0, is_bound=True, weight=0.5, backwards=3.0)
    assert speed.seconds_of([half] * 2, [batch] * 2) == 2 * 2.0 * tokens * (1 + 9)


def test_calls_take_time_of_their_own_and_logits_by_the_row() -> None:
    model = interp.load_model(HOPS)
    (shard,) = model.shards(interp.load_task("two-hop", n=20))[:1]
    batch = model.tokenize(shard)
    tokens = batch.tokens.numel()
    pace, logits = {batch.tokens.shape[1]: Pace(5.0, 1.0)}, Pace(2.0, 0.1)
    clean = 5.0 + tokens

    def more(cost: Cost, *, at_once: int = tokens) -> float:
        speed = Speed(pace, 1.0, logits, tokens=at_once, rows=10)
        return speed.seconds_of([cost], [batch]) - clean

    assert more(Cost(0.0, 0)) == 0
    assert more(Cost(8.0, 0)) == pytest.approx(8 * clean)
    assert more(Cost(8.0, 0), at_once=4 * tokens) == pytest.approx(2 * 5.0 + 8 * tokens)
    assert more(Cost(8.0, 0, pieces=40)) == pytest.approx(40 * 5.0 + 8 * tokens)
    assert more(Cost(0.0, 0, logits=50)) == pytest.approx(5 * 2.0 + 5.0)
    assert more(Cost(0.0, 0, logits=50, pieces=20)) == pytest.approx(20 * 2.0 + 5.0)
    assert more(Cost(0.0, 0, once=7.0)) == pytest.approx(7.0)
    twice = Speed(pace, 1.0).seconds_of([Cost(0.0, 0, once=7.0)] * 2, [batch] * 2)
    assert twice == pytest.approx(2 * clean + 7.0)


def test_what_is_left_follows_what_was_measured() -> None:
    one, other = Cell("m", "t", "one"), Cell("m", "t", "other")
    work = WorkLeft({one: 10.0, other: 30.0}, n_workers=2)
    assert (work.share, work.seconds_left) == (0.0, 20.0)
    work.add(one, 0.5, Spent(15.0, block_tokens=1.0))  # three times as long as priced
    assert work.share == pytest.approx(5 / 40)
    of_all = (15 + 4) / (5 + 4)  # a tenth of the price of all counts as if it had been measured
    own = (15 + 1 * of_all) / (5 + 1)
    assert 2 < own < 3
    assert work.seconds_left == pytest.approx((5 * own + 30 * of_all) / 2)
    work.add(other, 0.5, Spent(0.001))  # read from disk
    assert work.seconds_left == pytest.approx((5 * own + 15 * of_all) / 2)
    work.drop(other)
    assert work.seconds_left == pytest.approx(5 * own / 2)


def test_one_slow_shard_at_the_beginning_does_not_make_hours_of_minutes() -> None:
    first, rest = Cell("m", "t", "first"), Cell("m", "t", "rest")
    work = WorkLeft({first: 1.0, rest: 199.0})
    work.add(first, 0.2, Spent(5.0, block_tokens=1.0))  # 25 times as long as priced
    assert work.seconds_left is not None
    assert 199 < work.seconds_left < 300


def test_nothing_is_said_of_what_is_left_without_prices() -> None:
    one = Cell("m", "t", "one")
    assert WorkLeft({one: None}).seconds_left is None


def test_the_time_left_falls_while_nothing_is_heard() -> None:
    now = [0.0]
    watch = Watch(lambda: now[0])
    assert (watch.doing, watch.left) == ("beginning", "")
    watch.hear(Standing("layer_skip", 0.25, 300.0))
    assert watch.left == "25 % done, about 5 min left"
    now[0] = 280.0
    assert watch.left == "25 % done, about 20 s left"
    now[0] = 310.0
    assert watch.left == "25 % done, nearly there"
    now[0] = 400.0
    assert watch.left == "25 % done, longer than planned"


def test_without_a_terminal_a_line_comes_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(shown, "_SECONDS", 0.02)
    monkeypatch.setattr(shown, "note", said.append)
    with watching() as progress:
        progress(Standing("layer_skip: prompts 1–8 of 20", 0.5, 90.0))
        until = time.monotonic() + 5
        while not said and time.monotonic() < until:
            time.sleep(0.01)
    assert said[-1].startswith("layer_skip: prompts 1–8 of 20; 50 % done, about ")


def test_durations_are_round() -> None:
    assert [duration(s) for s in (4.4, 94.0, 125.0, 3600.0, 7810.0)] == [
        "4 s",
        "94 s",
        "2 min",
        "1 h",
        "2 h 10 min",
    ]


# Runs


def of_analysis(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {cell["analysis"]: cell for cell in run["cells"].values()}


@pytest.mark.usefixtures("speed")
def test_prompts_are_shrunk_first_then_layers_then_analyses_are_left_out(tmp_path: Path) -> None:
    whole = {cost.cell.analysis: cost for cost in estimate_costs(asked(1e6))}
    assert not any(cost.shrunk or cost.why_not for cost in whole.values())
    seconds = {name: cost.seconds or 0.0 for name, cost in whole.items()}
    assert seconds["integrated_gradients"] > seconds["residual_erasure"]
    little = seconds["residual_erasure"] + seconds["block_influence"]
    minutes = (little + 0.9 * seconds["integrated_gradients"]) / 60 / 0.9 + 1
    cells = {cost.cell.analysis: cost for cost in estimate_costs(asked(minutes))}
    assert cells["residual_erasure"].n_prompts == 20
    assert cells["integrated_gradients"].n_prompts == 16
    assert cells["integrated_gradients"].shrunk.startswith("16 of 20 prompts to fit the budget; ")
    run = execute(asked((little / 2 + 30) / 60), tmp_path / "tight")
    tight = of_analysis(run)
    assert tight["block_influence"]["n_prompts"] == 20
    assert tight["residual_erasure"]["n_prompts"] < 20
    assert "prompts to fit the budget" in tight["residual_erasure"]["left_out"]
    gradients = tight["integrated_gradients"]
    assert gradients["status"] == "skipped" or gradients["parameters"]["every"] > 1
    told = gather(tmp_path / "tight")["warnings"]
    assert any("residual_erasure" in one and "to fit the budget; all: about" in one for one in told)


@pytest.mark.usefixtures("speed")
def test_what_is_left_out_has_its_price_and_its_command(tmp_path: Path) -> None:
    cells = of_analysis(execute(asked(0.0), tmp_path / "run"))
    assert {cell["status"] for cell in cells.values()} == {"skipped"}
    why = cells["integrated_gradients"]["error"]
    assert why.startswith("left out to fit the budget: about ")
    assert "for 8 of 20 prompts, every=8" in why
    command = f"interp run --model {HOPS} --task two-hop --analysis integrated_gradients --n 20"
    assert f"`{command} --out runs/zoo--hops-4l--two-hop--integrated_gradients`" in why
    with pytest.raises(RunError, match=r"no result .*: left out to fit the budget: about"):
        interp.open_run(tmp_path / "run")[HOPS, "two-hop", "integrated_gradients"]


@pytest.mark.usefixtures("speed")
def test_only_the_command_of_what_compares_two_names_the_second_model(tmp_path: Path) -> None:
    study = replace(asked(0.0), against=HOPS)
    study = replace(study, analyses={**study.analyses, "depth_map": {}})
    cells = of_analysis(execute(study, tmp_path / "run"))
    assert f" --against {HOPS} " in cells["depth_map"]["error"]
    assert "--against" not in cells["integrated_gradients"]["error"]


def test_a_resumed_run_keeps_what_the_budget_did(tmp_path: Path, monkeypatch: Any) -> None:
    slow, quick = Speed({5: Pace(0.0, 0.1)}, 2.0), Speed({5: Pace(0.0, 1e-9)}, 2.0)
    monkeypatch.setattr("interp.runs.worker.measure_speed", lambda *_: slow)
    first = execute(asked(5.0), tmp_path)
    (tmp_path / f"{Cell(HOPS, 'two-hop', 'residual_erasure').path}/result.json").unlink()
    monkeypatch.setattr("interp.runs.worker.measure_speed", lambda *_: quick)
    again = execute(asked(5.0), tmp_path)
    assert again["plan"] == first["plan"]
    one, other = of_analysis(first), of_analysis(again)
    assert one["residual_erasure"]["n_prompts"] == other["residual_erasure"]["n_prompts"]
    assert one["residual_erasure"]["findings"] == other["residual_erasure"]["findings"]
    with pytest.raises(RunError, match=r"budget = 5\.0"):
        execute(asked(6.0), tmp_path)


@pytest.mark.usefixtures("speed")
def test_a_dry_run_plans_as_the_run_does(tmp_path: Path) -> None:
    planned = {cost.cell.name: cost for cost in estimate_costs(asked(5.0))}
    run = execute(asked(5.0), tmp_path)
    (plan,) = run["plan"].values()
    for name, cost in planned.items():
        kept = plan["cells"][name]
        assert (cost.n_prompts, cost.seconds) == (kept["n_prompts"], kept["seconds"])
        assert cost.shrunk == kept["shrunk"]


@pytest.mark.usefixtures("speed")
def test_named_analyses_are_never_shrunk() -> None:
    with pytest.raises(RunError, match="never shrunk"):
        Study((HOPS,), ("two-hop",), SOME, budget=1.0).check()
    done = CliRunner().invoke(cli.app, ["run", "--model", HOPS, "--task", "two-hop", "--dry-run",
        "--analysis", "integrated_gradients", "--n", "64"])  # fmt: skip
    assert done.exit_code == 0
    assert " min" in done.output or " h" in done.output
    assert "shrunk" not in done.output


def test_a_dry_run_of_what_cannot_be_asked_is_a_line(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"text": "Nora rival teacher friend"}\n')
    words = ["run", "--model", HOPS, "--task", str(own), "--dry-run", "--analysis", "layer_skip"]
    done = CliRunner().invoke(cli.app, [*words, "--analysis", "attention_knockout"])
    assert done.exit_code == 0
    assert "attention_knockout" in done.output
    assert "skipped: an answer is needed" in done.output


@pytest.mark.usefixtures("speed")
def test_show_says_what_an_unfinished_run_has_still_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(IntegratedGradients, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute(asked(None), tmp_path)
    said = CliRunner().invoke(cli.app, ["show", str(tmp_path)]).output
    assert "residual_erasure" in said
    assert "block_influence" in said
    assert "integrated_gradients to do" in said
    assert "2 of 3 done, 1 left, about" in said
    assert "not at work; the same `interp run` goes on" in said
    said_to_programs = read(CliRunner().invoke(cli.app, ["show", str(tmp_path), "--json"]).output)
    (left,) = [cell for cell in said_to_programs["cells"] if cell["status"] == "to do"]
    assert (left["analysis"], left["shards"]) == ("integrated_gradients", 0)


# Fewer layers


@pytest.fixture(scope="module")
def few() -> tuple[Any, Any]:
    return interp.load_model(HOPS), interp.load_task("two-hop", n=6)


@pytest.mark.parametrize(
    ("whole", "coarse", "layers"),
    [
        (IntegratedGradients(), IntegratedGradients(every=2), {1, 3}),
        (ResidualErasure(), ResidualErasure(every=2), {0, 2, 4}),
        (ResidualErasure(), ResidualErasure(every=3), {1, 4}),
    ],
)
def test_every_nth_layer_has_the_numbers_that_it_has_among_all(
    few: tuple[Any, Any], whole: Any, coarse: Any, layers: set[int]
) -> None:
    of_all, of_some = whole.run(*few).to_frame(), coarse.run(*few)
    frame = of_some.to_frame()
    assert set(frame["layer"]) == layers
    same = of_all[of_all["layer"].isin(layers)].reset_index(drop=True)
    pd.testing.assert_frame_equal(frame, same, rtol=1e-4, atol=1e-5)
    assert of_some.findings()
    of_some.plot()


def test_coarser_ends_at_every_eighth_layer() -> None:
    analysis, seen = IntegratedGradients(), []
    while (coarser := analysis.coarser()) is not None:
        analysis = coarser
        seen.append(analysis.every)
    assert seen == [2, 4, 8]
    assert BlockInfluence().coarser() is None


# What the plan sees


def test_too_few_prompts_are_seen_before_a_run() -> None:
    analyses: dict[str, dict[str, Any]] = {"depth_map": {}, "block_influence": {}}
    few = Study((HOPS,), ("one-hop",), analyses, n=8, only_fitting=True)
    why = {cost.cell.analysis: cost.why_not for cost in estimate_costs(few)}
    assert why["block_influence"] == ""
    assert "at least 129 are needed" in why["depth_map"]


def test_no_budget_leaves_an_analysis_fewer_prompts_than_it_needs() -> None:
    model, analysis = interp.load_model(HOPS), DepthMap(control="none")
    study = Study((HOPS,), ("one-hop",), {"depth_map": {}}, n=200, only_fitting=True, budget=1.0)
    task = study.draw(model, study.load_task("one-hop")).task
    parts = [model.shards(part) for part in study.levels(task)]
    batches = [model.tokenize(shard) for part in parts for shard in part]
    pricing = Pricing(model, batches, [*accumulate(map(len, parts))], None)
    planned = PlannedCell(Cell(HOPS, "one-hop", "depth_map"), analysis)
    offers = [*pricing.offers(planned, usable_shards(analysis, model, batches), "")]
    sizes = [offer.cost.n_prompts for offer in offers]
    assert sizes[0] == 200
    assert 8 < sizes[-1] < 200
    for n in (sizes[-1] // 2, 8):
        with pytest.raises(AnalysisError, match="at least 129 are needed"):
            usable_shards(analysis, model, [model.tokenize(task.prompts[:n])])


def test_what_the_process_holds_is_in_the_plan() -> None:
    return_large_blocks()
    (cost,) = estimate_costs(Study((HOPS,), ("one-hop",), {"block_influence": {}}, n=8))
    assert 0 < resident_mb() <= peak_mb() + 1
    assert cost.memory_mb == pytest.approx(resident_mb(), rel=0.3)
