"""From the rows of experiments/reproduce.py to a page, results/SCALE.md: statements and tables.

Differences are taken seed by seed, between runs that share the seed and with it the fine-tuning
examples; an interval is the 95 % t interval of the mean of such differences. Accuracies are in per
cent, their differences in points.
"""
import itertools
import statistics
import textwrap
from typing import NamedTuple

import numpy as np

from data.tokenfile import write_atomically
from experiments.plan import SECOND, datasets_of

# 97.5 % quantiles of Student's t with 1, 2, ... 20 degrees of freedom; the last serves for more, a
# little too wide.
T_QUANTILES = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
               2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086]
COSTS = ["tokens", "seconds"]
CURVE = ["positions", *COSTS, "val_loss", "val_accuracy"]  # columns of a row's "curve"
MARGIN = 1.0  # points that a model may lack and still count as accurate as another
SPEEDUP = 5.0  # what our recipe aims at
POINTS = "points (95 % interval)"


class Claim(NamedTuple):
    """What the rows say of a claim; empty where they say nothing."""
    statement: list = []  # paragraphs
    table: list = []  # its head and its rows, lists of cells
    points: object = ()  # what its figure shows


# ---- statistics ----------------------------------------------------------------------------------

def summary(values):
    """-> mean, standard deviation (0 of one value)."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def interval(values):
    """-> mean, lower and upper end of the 95 % t interval (Student 1908); infinite of one value."""
    mean, deviation = summary(values)
    n = len(values)
    if n < 2:
        return mean, -np.inf, np.inf
    half = T_QUANTILES[min(n - 2, len(T_QUANTILES) - 1)] * deviation / n ** 0.5
    return mean, mean - half, mean + half


def verdict(values, least=0.0):
    """-> what differences say of the claim that the true one is more than `least` (str)."""
    if len(values) < 2:
        return "**not decided** (one seed)"
    _, low, high = interval(values)
    if low > least:
        return "supported"
    if high < least:
        return "**not supported**, the opposite holds"
    return f"**not supported**: {len(values)} seeds don't decide it"


def spread(values):
    """'31.2 +- 2.0': mean and standard deviation, which one value doesn't have; a dash for none."""
    if not len(values):
        return "-"
    mean, deviation = summary(values)
    return f"{mean:.1f} +- {deviation:.1f}" if len(values) > 1 else f"{mean:.1f}"


def between(values):
    """'+3.1 (+2.0 to +4.2)': mean and 95 % interval; a dash for no values."""
    if not len(values):
        return "-"
    mean, low, high = interval(values)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})" if len(values) > 1 else f"{mean:+.1f}"


def paired(first, second):
    """Two {seed: value} -> the values of the seeds that both have, in their order (two arrays)."""
    seeds = sorted(first.keys() & second.keys())
    return [np.array([values[seed] for seed in seeds]) for values in (first, second)]


# ---- what the rows hold --------------------------------------------------------------------------

def accuracies(rows, model, task, corpus):
    """-> {seed: test accuracy in per cent}; corpus None: from random weights."""
    wanted = "finetune", model, task, corpus
    return {row["seed"]: 100 * row["accuracy"] for row in rows
            if (row["kind"], row.get("model"), row.get("task"), row.get("corpus")) == wanted}


def bag_of_words(rows, task):
    """-> {seed: test accuracy in per cent} of counting words."""
    return {row["seed"]: 100 * row["accuracy"] for row in rows
            if row["kind"] == "bag_of_words" and row["task"] == task}


def gaps(rows, model, task, corpus):
    """-> {seed: points by which pre-training on `corpus` beats random weights}."""
    pretrained = accuracies(rows, model, task, corpus)
    scratch = accuracies(rows, model, task, None)
    return {seed: pretrained[seed] - scratch[seed] for seed in pretrained if seed in scratch}


def committees(rows, task, one_pretraining=False):
    """-> {seed: row} of the committees; one_pretraining: of those whose members share theirs."""
    return {row["seed"]: row for row in rows if row["kind"] == "committee"
            and row["task"] == task and ("one_pretraining" in row) == one_pretraining}


def soft_votes(committees):
    """{seed: row} of committees -> {seed: test accuracy in per cent}."""
    return {seed: 100 * row["soft"] for seed, row in committees.items()}


def pretrainings(rows, corpora):
    """-> {corpus: a row of a pre-training on it by our recipe}, of those that there are."""
    first = {row["corpus"]: row for row in reversed(rows)
             if row["kind"] == "pretrain" and row.get("recipe") != "paper"}
    return {corpus: first[corpus] for corpus in corpora if corpus in first}


def by_recipe(rows):
    """-> the row of the pre-training by the paper's recipe or None, those of ours (by seed)."""
    paper = next((row for row in rows if row.get("recipe") == "paper"), None)
    ours = [row for row in rows if row.get("recipe") == "ours"]
    return paper, sorted(ours, key=lambda row: row["seed"])


# ---- the claims ----------------------------------------------------------------------------------

def claim_gap(scale, rows):
    table, points = [["model", "classification set", "seeds", "pre-trained, %",
                      "random weights, %", f"gap, {POINTS}", "claim", "bag of words, %",
                      f"pre-trained above it, {POINTS}"]], []
    for model, task in itertools.product([*scale.models, scale.main + SECOND], scale.tasks):
        by_seed = accuracies(rows, model, task, scale.home)
        random_weights = accuracies(rows, model.removesuffix(SECOND), task, None)
        pretrained, scratch = paired(by_seed, random_weights)
        gap = pretrained - scratch
        if len(gap):
            model_above, bag = paired(by_seed, bag_of_words(rows, task))
            table.append([model, task, len(gap), spread(pretrained), spread(scratch), between(gap),
                          verdict(gap), spread(bag), between(model_above - bag)])
            points.append((model, task, summary(pretrained), summary(scratch)))
    n_held = sum(line[6] == "supported" for line in table)
    text = (f"**Claim 1, pre-training on {scale.home} makes a gap**: supported for {n_held} of "
            f"{len(points)} pairs of a model and a classification set, by the table's intervals. "
            "The bag of words is a linear classifier of TF-IDF (experiments/bag_of_words.py) on "
            "the same examples.")
    return Claim([text], table, points) if points else Claim()


def by_examples(scale, rows):
    """For the figure: accuracy by the number of training examples."""
    lines = {}
    for task in scale.tasks:
        n = next((row["n_examples"] for row in rows if row["kind"] == "bag_of_words"
                  and row["task"] == task), None)
        values = {"bag of words": bag_of_words(rows, task)}
        for model in scale.models:
            values[f"{model}, pre-trained"] = accuracies(rows, model, task, scale.home)
            values[f"{model}, random weights"] = accuracies(rows, model, task, None)
        values[scale.main + SECOND] = accuracies(rows, scale.main + SECOND, task, scale.home)
        for name, by_seed in values.items():
            if n and by_seed:
                points = lines.setdefault(task.split()[0], {}).setdefault(name, [])
                points.append((n, *summary(by_seed.values())))
    several = len(datasets_of(scale.tasks)) < len(scale.tasks)  # numbers of examples, of one set
    return Claim(points=lines if several else ())


def claim_size(scale, rows):
    return growth(scale, rows, scale.sizes, "**Claim 2, the gap grows with the pre-training set**")


def claim_steps(scale, rows):
    return growth(scale, rows, scale.equal_steps, "**Claim 2, control: more articles, but as many "
                  "steps**, a smaller set passed over more often")


def growth(scale, rows, corpora, title):
    """How the gap grows over pre-training sets of rising numbers of articles."""
    sets = pretrainings(rows, corpora)
    if not sets:
        return Claim()
    found, points, head = [], {}, ["articles", "training tokens"]
    lines = [[f"{row['n_articles']:,}", f"{row['tokens']:,}"] for row in sets.values()]
    for task in scale.tasks:
        gap = {row["n_articles"]: gaps(rows, scale.main, task, corpus)
               for corpus, row in sets.items()}
        head.append(f"gap on {task}, {POINTS}")
        for line, by_seed in zip(lines, gap.values()):
            line.append(between(by_seed.values()))
        series = [(n, *summary(by_seed.values())) for n, by_seed in gap.items() if by_seed]
        points |= {task: series} if series else {}
        slopes, doublings = [], np.log2(list(gap))
        for seed in sorted(set.intersection(*map(set, gap.values()))) if len(gap) > 1 else []:
            values = [by_seed[seed] for by_seed in gap.values()]
            slopes.append(float(np.polyfit(doublings, values, 1)[0]))
        if slopes:
            found.append(f"{between(slopes)} on {task} ({len(slopes)} seeds): {verdict(slopes)}")
    statement = [f"{title}, points a doubling: {'; '.join(found)}."] if found else []
    return Claim(statement, [head, ["0"] * len(head), *lines], points)


def claim_overlap(scale, rows):
    task, sets = scale.overlap_task, pretrainings(rows, scale.overlap_sets)
    gap = {corpus: by_seed for corpus in sets if (by_seed := gaps(rows, scale.main, task, corpus))}
    if len(gap) < 2:
        return Claim()
    first, *_, last = gap
    low, high = paired(gap[first], gap[last])
    text = (f"**Claim 3, the gap grows with the overlap of tokens**, at equal size, on {task}: "
            f"{last} against {first} {between(high - low)} points ({len(low)} seeds): "
            f"{verdict(high - low)}.")
    measures = list(sets[first]["overlap"])
    table = [["pre-training set", "training tokens", *measures, "seeds", f"gap, {POINTS}"]]
    points = {measures[0]: []}
    for corpus, by_seed in gap.items():
        shares = list(sets[corpus]["overlap"].values())
        table.append([corpus, f"{sets[corpus]['tokens']:,}", *(f"{share:.3f}" for share in shares),
                      len(by_seed), between(by_seed.values())])
        points[measures[0]].append((shares[0], *summary(by_seed.values())))
    return Claim([text] if len(low) else [], table, points)


def claim_committee(scale, rows):
    """A committee against its members, counting words and, where there is one, the deep model."""
    table, points, counts, n_better, n_deeper = [], {}, set(), 0, 0
    several = scale.n_committees > 1
    for task in scale.tasks:
        found, controls = committees(rows, task), committees(rows, task, one_pretraining=True)
        if not found:
            continue
        deep = accuracies(rows, scale.deep, task, scale.home)
        n, K = len(found), min(len(row["by_size"]) for row in found.values())
        # Where there are several, committee and deep model of the same number have seen the same
        # examples. A single one is compared with all deep models.
        soft = soft_votes(found)
        ours, theirs = paired(soft if several else dict.fromkeys(deep, *soft.values()), deep)
        deeper, shallow = paired(deep, accuracies(rows, scale.main, task, scale.home))
        above_words = np.subtract(*paired(soft, bag_of_words(rows, task)))
        sizes = []  # members, mean, deviation: over the committees, or one's subsets
        for k in range(1, K + 1):
            of_size = [row["by_size"][k - 1] for row in found.values()]
            mean, deviation = summary([100 * result["mean"] for result in of_size])
            sizes.append((k, mean, deviation if n > 1 else 100 * of_size[0]["sd"]))
        cells = [f"{mean:.1f}" + f" +- {deviation:.1f}" * (n > 1 or k < K)
                 for k, mean, deviation in sizes]
        matched = claim = "-"
        if deep:
            least = summary(deep.values())[0] - MARGIN
            matched = next((k for k, mean, _ in sizes if mean >= least), f"more than {K}")
            claim = verdict(ours - theirs, -MARGIN)
            points[task] = sizes, summary(deep.values())
        table.append([task, *cells, spread(soft_votes(controls).values()), between(above_words),
                      spread(deep.values()), between(deeper - shallow), matched,
                      between(ours - theirs), claim])
        n_better += verdict(above_words) == "supported"
        n_deeper += verdict(deeper - shallow) == "supported"
        counts.add((n, K))
    if not table:
        return Claim()
    n, K = max(counts)
    n_held = sum(line[-1] == "supported" for line in table)
    over = (f"{n} committees" if several else "the subsets of one committee; the interval does not "
            "hold the spread of committees")
    votes = f", and the committee than counting words on {n_better}" if several else ""
    text = (f"**Claim 4, a soft committee of {K} {scale.main} is as accurate as {scale.deep}** (at "
            f"most {MARGIN:g} point worse): supported on {n_held} of {len(table)} classification "
            f"sets. By the intervals {scale.deep} is better than one {scale.main} of the same "
            f"examples on {n_deeper}{votes}. Accuracies in per cent by the number of members, with "
            f"deviations over {over}. Beside them {K} fine-tunings of one pre-training, and how "
            f"many members are, on average, as accurate as {scale.deep}.")
    head = ["classification set", *map(str, range(1, K + 1)), f"{K} of one pre-training",
            f"{K} above the bag of words, {POINTS}", scale.deep,
            f"{scale.deep} above one, {POINTS}", "members as accurate",
            f"{K} above {scale.deep}, {POINTS}", "claim"]
    return Claim([text], [head, *table], points)


def claim_latency(scale, rows):
    times = next((row["latency"] for row in rows if "latency" in row), [])
    by_name = {time["name"]: time for time in times}
    committees = [time for time in times if " members" in time["name"]]
    if "deep model" not in by_name or not committees:
        return Claim()
    found = []
    for batch in (1, 64):
        key = f"seconds_{batch}"
        best, deep = min(committees, key=lambda time: time[key]), by_name["deep model"][key]
        found.append(
            f"in batches of {batch} the deep model takes {deep / best[key]:.2f} times as long as "
            f"{best['name']}, and {deep / by_name['one member'][key]:.2f} times as long as one: "
            f"{'supported' if deep > best[key] else '**not supported**'}")
    text = (f"**Claim 4, and it is faster**, on this one device: {'; '.join(found)}. On "
            "devices of their own all members take as long as one.")
    table = [["", "parameters", "MFLOPs a text", "batch of 1, ms", "batch of 64, ms"]]
    for time in times:
        table.append([time["name"], f"{time['parameters']:,}", f"{time['flops'] / 1e6:,.0f}",
                      f"{1e3 * time['seconds_1']:.1f}", f"{1e3 * time['seconds_64']:.1f}"])
    return Claim([text], table, times)


def reach(curve, column, target):
    """-> what a run had spent, {tokens, seconds}, when the column of its curve first got as good as
    `target`, linearly between evaluations; None if it never did. val_loss falls, val_accuracy
    rises."""
    better = -1 if column == "val_loss" else 1
    rows = [dict(zip(CURVE, values)) for values in curve]
    for before, after in itertools.pairwise(rows):
        if better * (after[column] - target) >= 0:
            share = (target - before[column]) / (after[column] - before[column])
            return {key: before[key] + share * (after[key] - before[key]) for key in COSTS}
    return None


def claim_cost(scale, rows):
    """What the paper's recipe spent for its last loss and accuracy, against what ours had spent
    when it got there."""
    paper, ours = by_recipe(rows)
    if not paper or not ours:
        return Claim()
    found, table = [], [["until", "", "paper's recipe", "ours", "ratio"]]
    for column, name, unit in (("val_loss", "loss", 1), ("val_accuracy", "masked accuracy", 100)):
        goal = f"{name} {unit * paper[column]:.2f}"
        spent = [reach(row["curve"], column, paper[column]) for row in ours]
        if None in spent:
            found.append(f"{goal}: **no**, {spent.count(None)} of our runs never reached it")
            continue
        ratios = {key: [paper[key] / run[key] for run in spent] for key in COSTS}
        is_reached = min(min(by_seed) for by_seed in ratios.values()) >= SPEEDUP
        found.append(f"{goal}: {'yes,' if is_reached else '**not**'} by every seed")
        for key in COSTS:
            mean = statistics.mean(run[key] for run in spent)
            table.append([goal, key, f"{paper[key]:,.0f}", f"{mean:,.0f}", spread(ratios[key])])
    text = (f"**Cost**: is where the paper's recipe ended reached with {SPEEDUP:g} times fewer "
            f"tokens and seconds? {'; '.join(found)}. {scale.main} was trained by it once "
            f"({paper['tokens']:,} tokens of {paper['corpus']}, its schedule at its end). "
            f"{len(ours)} of our runs are compared part of the way, interpolated between "
            "evaluations, which are not timed. The loss while only the tokens' frequencies are "
            f"known is {paper['plateau']:.2f}.")
    return Claim([text], table)


def claim_value(scale, rows):
    """What the models of both recipes are good for, at their ends."""
    paper, pretrained = by_recipe(rows)
    table = [["classification set", "seeds", "paper's recipe, %", "ours, %",
              f"difference, {POINTS}", "claim"]]
    for task in scale.tasks if paper and pretrained else []:
        theirs, ours = paired(accuracies(rows, paper["model"], task, scale.home),
                              accuracies(rows, scale.main, task, scale.home))
        if len(ours):
            table.append([task, len(ours), spread(theirs), spread(ours), between(ours - theirs),
                          verdict(ours - theirs, -MARGIN)])
    if not table[1:]:
        return Claim()
    tokens, seconds = (statistics.mean(paper[key] / row[key] for row in pretrained)
                       for key in ("tokens", "seconds"))
    text = (f"**Cost, in classification**: our whole runs took {tokens:.1f} times fewer tokens and "
            f"{seconds:.1f} times fewer seconds than the run by the paper's recipe. Are our models "
            f"as accurate (at most {MARGIN:g} point worse)? The paper's is pre-trained once, and "
            "fine-tuned with each seed.")
    return Claim([text], table)


def list_costs(scale, rows):
    """What each pre-training took, and the fine-tunings of the main model."""
    machines, groups = {row["machine"] for row in rows}, {}
    for row in rows:
        if row["kind"] == "pretrain":
            where = f", {row['machine']}" if len(machines) > 1 else ""
            groups.setdefault((row["model"] + where, row["corpus"]), []).append(row)
    table = [["pre-trained", "on", "runs", "tokens/s", "s a run", "FLOPs a run", "all runs"]]
    for group, members in groups.items():
        rate, seconds, flops = (statistics.mean(row[key] for row in members)
                                for key in ("tokens_per_second", "seconds", "flops"))
        table.append([*group, len(members), f"{rate:,.0f}", f"{seconds:,.0f}", f"{flops:.2e}",
                      f"{sum(row['flops'] for row in members):.2e}"])
    finetuned = [row for row in rows if (row["kind"], row.get("model")) == ("finetune", scale.main)]
    seconds = [row["seconds"] for row in finetuned]
    text = [f"The {len(seconds)} fine-tunings of {scale.main} took {sum(seconds) / 60:.1f} minutes "
            f"and {sum(row['flops'] for row in finetuned):.2e} FLOPs, the longest "
            f"{max(seconds):.0f} s."] if finetuned else []
    return Claim(text, table)


# ---- the page ------------------------------------------------------------------------------------

CLAIMS = {"gap": claim_gap, "examples": by_examples, "size": claim_size, "steps": claim_steps,
          "overlap": claim_overlap, "committee": claim_committee, "latency": claim_latency,
          "cost": claim_cost, "value": claim_value, "costs": list_costs}


def paragraph(text):
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def markdown(table):
    head, *lines = table
    return "\n".join(f"| {' | '.join(map(str, cells))} |"
                     for cells in [head, ["---"] * len(head), *lines])


def introduction(scale, rows, figure_names):
    """-> the paragraphs in front of the claims: where and how the rows were made (list of str)."""
    dates, machines, versions = (sorted({row[key] for row in rows})
                                 for key in ("date", "machine", "torch"))
    days = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    trained = [row for row in rows if row["kind"] in ("pretrain", "finetune")]
    commands = {(row["kind"], row["model"], row["corpus"]): row["command"]
                for row in reversed(trained)}
    examples = [("pretrain", scale.main, scale.home), ("finetune", scale.main, scale.home)]
    figures = ", ".join(f"[{name}](../figures/{scale.name}-{name}.png)" for name in figure_names)
    return [
        f"# Reproduction: {scale.name}",
        paragraph(f"`python -m experiments.reproduce --scale={scale.name}`, {days}, "
                  f"{' and '.join(machines)}, PyTorch {' and '.join(versions)}: {len(rows)} runs, "
                  f"{sum(row['seconds'] for row in trained) / 60:.0f} minutes and "
                  f"{sum(row['flops'] for row in trained):.2e} FLOPs of training, summed over them."
                  f" All commands are in {scale.name}.jsonl beside this page, such as"),
        "\n".join(f"    {commands[example]}" for example in examples if example in commands),
        paragraph("A seed is a pre-training and a fine-tuning of its own. Given are means and "
                  "standard deviations over seeds, and 95 % t intervals of the differences seed by "
                  "seed, which are not corrected for their number."
                  + f" Figures, with standard deviations as error bars: {figures}." * bool(figures)
                  )]


def page(scale, rows):
    """-> its text, and the points of the figures ({name: points})."""
    claims = {name: claim(scale, rows) for name, claim in CLAIMS.items()}
    points = {name: claim.points for name, claim in claims.items() if claim.points}
    if "examples" in points:
        points.pop("gap", None)  # which would have a panel for each number of examples
    steps = points.pop("steps", {})
    if "size" in points:  # whose figure has the control beside it
        points["size"] = {task: (series, steps.get(task, []))
                          for task, series in points["size"].items()}
    blocks = introduction(scale, rows, points)
    for claim in claims.values():
        blocks += map(paragraph, claim.statement)
        blocks.append(markdown(claim.table) if claim.table[1:] else "")
    return "\n\n".join(filter(None, blocks)), points


def write(scale, rows, path):
    """Write the page of a scale to `path`. -> the points of its figures (dict)."""
    text, points = page(scale, rows)
    write_atomically(path, f"{text}\n".encode())
    print("\n".join(block for block in text.split("\n\n") if block.startswith("**")))
    print(f"wrote {path}")
    return points
