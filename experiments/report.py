"""From the rows of experiments/reproduce.py to a page, results/SCALE.md: statements and tables.

Differences are taken seed by seed, between runs that share the seed and with it the fine-tuning
examples. Accuracies are in per cent, their differences in points: arrays over the test texts where
the rows have kept which of these are classified right, else arrays of one number.
"""
import base64
import itertools
import math
import statistics
import textwrap
from collections import Counter
from typing import NamedTuple

import numpy as np

from data.files import write_atomically
from experiments.plan import SECOND, datasets_of

# 97.5 % quantiles of Student's t with 1, 2, ... 20 degrees of freedom; the last serves for more, a
# little too wide.
T_QUANTILES = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
               2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086]
MARGIN = 1.0  # points that a model may lack and still count as accurate as another
POINTS = "points (95 % interval)"


class Claim(NamedTuple):
    """What the rows say of a claim; empty where they say nothing."""
    statement: list = []  # paragraphs
    table: list = []  # its head and its rows, lists of cells
    points: object = ()  # what its figure shows


# ---- statistics ----------------------------------------------------------------------------------

def stack(values):
    """Numbers or arrays over test texts, by seed -> one array (seeds, texts), or (seeds, 1) of
    their means where they don't have the same texts."""
    values = [np.atleast_1d(value) for value in values]
    if len(set(map(len, values))) > 1:
        values = [value.mean(keepdims=True) for value in values]
    return np.stack(values) if values else np.empty((0, 1))


def mean_and_sd(values):
    """-> mean, standard deviation over the seeds (0 for one)."""
    means = [float(np.mean(value)) for value in values]
    return statistics.mean(means), statistics.stdev(means) if len(means) > 1 else 0.0


def interval(values):
    """-> mean, lower and upper end of the 95 % interval, infinite for one seed: a t interval over
    the seeds (Student 1908), widened by the sampling of the test texts where they are known."""
    values, (mean, sd) = stack(values), mean_and_sd(values)
    n, n_texts = values.shape
    if n < 2:
        return mean, -np.inf, np.inf
    half = T_QUANTILES[min(n, 21) - 2] * sd / n ** 0.5
    if n_texts > 1:
        half = math.hypot(half, 1.96 * values.mean(0).std(ddof=1) / n_texts ** 0.5)
    return mean, mean - half, mean + half


def two_sided_p(t, df):
    """-> the probability that Student's t with df degrees of freedom is farther from 0 than t. Its
    density over the angle atan(sqrt(df) / t) is proportional to sin(angle) ** (df - 1)."""
    middles = (np.arange(10_000) + 0.5) / 10_000  # of the parts of a numerical integration
    tail, all_angles = (end * (np.sin(end * middles) ** (df - 1)).mean()
                        for end in (math.atan2(df ** 0.5, t), math.pi / 2))
    return tail / all_angles


def p_value(values, least):
    """-> of the hypothesis that the true mean is `least`: 0.05 where the interval ends there, and
    cautious beyond, where the interval holds the sampling of test texts."""
    (mean, low, _), n = interval(values), len(values)
    t = T_QUANTILES[min(n, 21) - 2] * abs(mean - least) / max(mean - low, 1e-9)
    return two_sided_p(t, min(n - 1, 20)) if n > 1 else 1.0


def holm(p_values):
    """{name: p} -> {name: p} corrected for their number (Holm 1979): where no difference is real,
    the least is below 0.05 in at most 5 % of all studies."""
    names = sorted(p_values, key=p_values.get)
    steps = [(len(names) - i) * p_values[name] for i, name in enumerate(names)]
    return dict(zip(names, itertools.accumulate(steps, max)))


def judge(comparisons, main, least=0.0):
    """{name: differences} -> {name: verdict on the claim that the true one is more than `least`},
    corrected for the number of all but the main comparison."""
    found = {name: p_value(values, least) for name, values in comparisons.items() if len(values)}
    found |= holm({name: p for name, p in found.items() if name != main})
    return {name: "undecided" if p >= 0.05 else
            "supported" if np.mean(comparisons[name]) > least else "refuted"
            for name, p in found.items()}


def tally(verdicts, main=""):
    """'supported 3, undecided 1, refuted 0; the main comparison, A on t, is supported'"""
    counts = Counter(verdicts.values())
    text = ", ".join(f"{name} {counts[name]}" for name in ("supported", "undecided", "refuted"))
    return text + f"; the main comparison, {main}, is {verdicts.get(main)}" * (main in verdicts)


def format_sd(values):
    """'31.2 +- 2.0': mean and standard deviation; of one value only the mean, of none a dash."""
    if not len(values):
        return "-"
    mean, sd = mean_and_sd(values)
    return f"{mean:.1f} +- {sd:.1f}" if len(values) > 1 else f"{mean:.1f}"


def format_interval(values):
    """'+3.1 (+2.0 to +4.2)': mean and 95 % interval; of one value only the mean, of none a dash."""
    if not len(values):
        return "-"
    mean, low, high = interval(values)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})" if len(values) > 1 else f"{mean:+.1f}"


def paired(first, second):
    """Two {seed: accuracy} -> those of the seeds that both have (two arrays, see stack)."""
    seeds = sorted(first.keys() & second.keys())
    return np.split(stack([values[seed] for values in (first, second) for seed in seeds]), 2)


# ---- what the rows hold --------------------------------------------------------------------------

def accuracy(row):
    """-> the test accuracy of a row in per cent (array): 0 or 100 of each text, if it has them."""
    if "right" not in row:
        return np.array([100 * row["soft" if row["kind"] == "committee" else "accuracy"]])
    bits = np.frombuffer(base64.b64decode(row["right"]), np.uint8)
    return 100.0 * np.unpackbits(bits, count=row["n"])


def accuracies(rows, model, task, corpus, kind="finetune"):
    """-> {seed: test accuracy}; corpus None: from random weights."""
    wanted = kind, model, task, corpus
    return {row["seed"]: accuracy(row) for row in rows
            if (row["kind"], row.get("model"), row.get("task"), row.get("corpus")) == wanted}


def bag_of_words(rows, task):
    """-> {seed: test accuracy} of the bag of words."""
    return accuracies(rows, None, task, None, "bag_of_words")


def gaps(rows, model, task, corpus):
    """-> {seed: points by which pre-training on `corpus` beats random weights}."""
    pretrained, scratch = (accuracies(rows, model, task, name) for name in (corpus, None))
    shared = sorted(pretrained.keys() & scratch.keys())
    return dict(zip(shared, np.subtract(*paired(pretrained, scratch))))


def committees(rows, task, one_pretraining=False):
    """-> {seed: row} of the committees; one_pretraining: of those whose members share theirs."""
    return {row["seed"]: row for row in rows if row["kind"] == "committee"
            and row["task"] == task and ("one_pretraining" in row) == one_pretraining}


def pretrainings(rows, corpora):
    """-> {corpus: the row of its first pre-training}, of those corpora that have one."""
    first = {row["corpus"]: row for row in reversed(rows) if row["kind"] == "pretrain"}
    return {corpus: first[corpus] for corpus in corpora if corpus in first}


# ---- the claims ----------------------------------------------------------------------------------

def claim_gap(scale, rows):
    """Pre-trained models against random weights, and against the bag of words."""
    table = [["model", "classification set", "seeds", "pre-trained, %", "random weights, %",
              f"gap, {POINTS}", "claim", "bag of words, %", f"pre-trained above it, {POINTS}"]]
    gap, main = {}, f"{scale.main_model} on {scale.main_task}"
    for model, task in itertools.product([*scale.models, scale.main_model + SECOND], scale.tasks):
        by_seed = accuracies(rows, model, task, scale.main_corpus)
        random_weights = accuracies(rows, model.removesuffix(SECOND), task, None)
        pretrained, scratch = paired(by_seed, random_weights)
        if len(pretrained):
            gap[f"{model} on {task}"] = above_scratch = pretrained - scratch
            model_above, bag = paired(by_seed, bag_of_words(rows, task))
            table.append([model, task, len(scratch), format_sd(pretrained), format_sd(scratch),
                          format_interval(above_scratch), format_sd(bag),
                          format_interval(model_above - bag)])
    verdicts = judge(gap, main)
    for line, verdict in zip(table[1:], verdicts.values()):
        line.insert(table[0].index("claim"), verdict)
    text = (f"**Claim 1, pre-training on {scale.main_corpus} makes a gap**: "
            f"{tally(verdicts, main)}. The bag of words is a linear classifier of TF-IDF "
            "(experiments/bag_of_words.py) on the same examples.")
    return Claim([text], table) if gap else Claim()


def by_examples(scale, rows):
    """For the figure: accuracy by the number of training examples."""
    lines = {}
    for task in scale.tasks:
        n = next((row["n_examples"] for row in rows if row["kind"] == "bag_of_words"
                  and row["task"] == task), None)
        values = {"bag of words": bag_of_words(rows, task), f"{scale.main_model}, random weights":
                  accuracies(rows, scale.main_model, task, None)}
        for model in scale.models:
            values[f"{model}, pre-trained"] = accuracies(rows, model, task, scale.main_corpus)
        for name, by_seed in values.items():
            if n and by_seed:
                points = lines.setdefault(task.split()[0], {}).setdefault(name, [])
                shared = [by_seed[seed] for seed in by_seed if seed < scale.seeds]
                points.append((n, *mean_and_sd(shared)))
    one_number = len(datasets_of(scale.tasks)) == len(scale.tasks)  # of examples for each set
    return Claim(points=() if one_number else lines)


def slopes(gap):
    """{articles: {seed: points}} -> points a doubling of each seed that all sizes have (list)."""
    doublings, shared = np.log2(list(gap)), set.intersection(*map(set, gap.values()))
    return [np.polyfit(doublings, stack([by_seed[seed] for by_seed in gap.values()]), 1)[0]
            for seed in sorted(shared)]


def claim_growth(scale, rows, corpora, title):
    """How the gap grows over pre-training sets of rising numbers of articles."""
    sets = pretrainings(rows, corpora)
    if not sets:
        return Claim()
    found, points, head = {}, {}, ["articles", "training tokens"]
    lines = [[f"{row['n_articles']:,}", f"{row['tokens']:,}"] for row in sets.values()]
    for task in scale.tasks:
        gap = {row["n_articles"]: gaps(rows, scale.main_model, task, corpus)
               for corpus, row in sets.items()}
        head.append(f"gap on {task}, {POINTS}")
        for line, by_seed in zip(lines, gap.values()):
            line.append(format_interval(by_seed.values()))
        series = [(n, *mean_and_sd(by_seed.values())) for n, by_seed in gap.items() if by_seed]
        points |= {task: series} if series else {}
        if len(gap) > 1 and (by_doubling := slopes(gap)):
            found[task] = by_doubling
    verdicts = judge(found, scale.main_task)
    slope = "; ".join(f"{format_interval(values)} on {task} ({len(values)} seeds): "
                      f"{verdicts[task]}" for task, values in found.items())
    text = f"{title}: {tally(verdicts, scale.main_task)}. Points a doubling: {slope}."
    return Claim([text] if found else [], [head, ["0"] * len(head), *lines], points)


def claim_overlap(scale, rows):
    """The gap after pre-training sets of one size and rising overlap with the task."""
    task, sets = scale.overlap_task, pretrainings(rows, scale.overlap_sets)
    gap = {corpus: gaps(rows, scale.main_model, task, corpus) for corpus in sets}
    gap = {corpus: by_seed for corpus, by_seed in gap.items() if by_seed}
    if len(gap) < 2:
        return Claim()
    first, *_, last = gap
    low, high = paired(gap[first], gap[last])
    text = (f"**Claim 3, the gap grows with the overlap of tokens**, at equal size, on {task}: "
            f"{tally(judge({task: high - low}, task))}: {last} against {first} "
            f"{format_interval(high - low)} points ({len(low)} seeds).")
    measures = list(sets[first]["overlap"])
    table = [["pre-training set", "training tokens", *measures, "seeds", f"gap, {POINTS}"]]
    for corpus, by_seed in gap.items():
        shares = list(sets[corpus]["overlap"].values())
        table.append([corpus, f"{sets[corpus]['tokens']:,}", *(f"{share:.3f}" for share in shares),
                      len(by_seed), format_interval(by_seed.values())])
    seeds = sorted(set.intersection(*map(set, gap.values())))
    points = (measures[0], [sets[corpus]["overlap"][measures[0]] for corpus in gap],
              [[float(by_seed[seed].mean()) for by_seed in gap.values()] for seed in seeds])
    return Claim([text] if len(low) else [], table, points if seeds else ())


def accuracy_of_sizes(found):
    """Committees {seed: row} -> (members, mean accuracy, standard deviation) for 1, 2, ... members
    (list): over the committees, or over the subsets of a single one."""
    sizes = []
    for results in zip(*(row["by_size"] for row in found.values())):
        mean, sd = mean_and_sd([100 * result["mean"] for result in results])
        sizes.append((len(sizes) + 1, mean, sd if len(found) > 1 else 100 * results[0]["sd"]))
    return sizes


def compare_committees(scale, rows, task):
    """The committees of a task. -> their line of the table ({column: cell}); the points by which
    they are above the deep model and the bag of words, and the deep model is above one member
    (three arrays, by seed); what the figure shows (nothing without a deep model)."""
    found, corpus, name = committees(rows, task), scale.main_corpus, scale.deep_model
    votes, controls = ({seed: accuracy(row) for seed, row in group.items()}
                       for group in (found, committees(rows, task, one_pretraining=True)))
    sizes, several = accuracy_of_sizes(found), scale.n_committees > 1
    deep, one = (accuracies(rows, model, task, corpus) for model in (name, scale.main_model))
    above_words = np.subtract(*paired(votes, bag_of_words(rows, task)))
    deep_above_one = np.subtract(*paired(deep, one))
    # Where there are several, committee and deep model of the same number have seen the same
    # examples. A single one is compared with all deep models.
    matched = found if several else dict.fromkeys(deep, next(iter(found.values())))
    above_deep = np.subtract(*paired({seed: accuracy(row) for seed, row in matched.items()}, deep))
    K, least = len(sizes), mean_and_sd(deep.values())[0] - MARGIN if deep else np.inf
    enough = next((k for k, mean, _ in sizes if mean >= least), f"more than {K}" if deep else "-")
    line = {"classification set": task}
    for k, mean, sd in sizes:
        line[str(k)] = f"{mean:.1f} +- {sd:.1f}" if len(found) > 1 or k < K else f"{mean:.1f}"
    line |= {f"{K} of one pre-training": format_sd(controls.values()),
             f"{K} above the bag of words, {POINTS}": format_interval(above_words),
             name: format_sd(deep.values()), f"{name} above one, {POINTS}":
             format_interval(deep_above_one), "members as accurate": enough,
             f"{K} above {name}, {POINTS}": format_interval(above_deep)}
    by_size = [[100 * matched[seed]["by_size"][k]["mean"] - float(deep[seed].mean())
                for seed in sorted(matched.keys() & deep.keys())] for k in range(K)]
    shown = [(k + 1, *mean_and_sd(above)) for k, above in enumerate(by_size) if above]
    return line, (above_deep, above_words, deep_above_one), shown


def claim_committee(scale, rows):
    """Committees against their members, the bag of words and, if there is one, the deep model."""
    tasks = [task for task in scale.tasks if committees(rows, task)]
    if not tasks:
        return Claim()
    lines, differences, shown = zip(*(compare_committees(scale, rows, task) for task in tasks))
    above_deep, *others = (dict(zip(tasks, by_task)) for by_task in zip(*differences))
    K, one, deep, main = scale.n_members, scale.main_model, scale.deep_model, scale.main_task
    verdicts = judge(above_deep, main, -MARGIN)
    n_better, n_deeper = (list(judge(other, main).values()).count("supported") for other in others)
    over = "the subsets of one committee; the interval does not hold the spread of committees"
    better = ""
    if scale.n_committees > 1:
        over = f"{max(len(committees(rows, task)) for task in tasks)} committees"
        better = f", and the committee than the bag of words on {n_better}"
    text = (f"**Claim 4, a soft committee of {K} {one} is as accurate as {deep}** (at most "
            f"{MARGIN:g} point worse): {tally(verdicts, main)}. By the same test {deep} is better "
            f"than one {one} of the same examples on {n_deeper} of {len(tasks)} classification sets"
            f"{better}. Accuracies in per cent by the number of members, with deviations over "
            f"{over}. Beside them {K} fine-tunings of one pre-training, and how many members are, "
            f"on average, as accurate as {deep}.")
    table = [[*lines[0], "claim"], *([*line.values(), verdicts.get(task, "-")]
                                     for task, line in zip(tasks, lines))]
    return Claim([text], table, {task: points for task, points in zip(tasks, shown) if points})


def claim_latency(scale, rows):
    """How long committee, member and deep model take for a batch."""
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
            f"{'supported' if deep > best[key] else 'refuted'}")
    text = (f"**Claim 4, and it is faster**, on this one device: {'; '.join(found)}. On "
            "devices of their own all members take as long as one.")
    table = [["", "parameters", "MFLOPs a text", "batch of 1, ms", "batch of 64, ms"]]
    for time in times:
        table.append([time["name"], f"{time['parameters']:,}", f"{time['flops'] / 1e6:,.0f}",
                      f"{1e3 * time['seconds_1']:.1f}", f"{1e3 * time['seconds_64']:.1f}"])
    return Claim([text], table)


# ---- the page ------------------------------------------------------------------------------------

def paragraph(text):
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def markdown(table):
    head, *lines = table
    return "\n".join(f"| {' | '.join(map(str, cells))} |"
                     for cells in [head, ["---"] * len(head), *lines])


def introduction(scale, rows, figure_names):
    """-> the paragraph in front of the claims: where and how the rows were made."""
    dates, machines, versions = (sorted({row[key] for row in rows})
                                 for key in ("date", "machine", "torch"))
    days = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    trained = [row for row in rows if row["kind"] in ("pretrain", "finetune")]
    figures = ", ".join(f"[{name}](../figures/{scale.name}-{name}.png)" for name in figure_names)
    return paragraph(
        f"`python -m experiments.reproduce --scale={scale.name}`, {days}, "
        f"{' and '.join(machines)}, PyTorch {' and '.join(versions)}: {len(rows)} runs, "
        f"{sum(row['seconds'] for row in trained) / 60:.0f} minutes and "
        f"{sum(row['flops'] for row in trained):.2e} FLOPs of training, summed over them. All "
        f"commands are in {scale.name}.jsonl beside this page. [RESULTS.md](../RESULTS.md) says "
        "what seeds, intervals and verdicts are."
        + f" Figures, with standard deviations as error bars: {figures}." * bool(figures))


def page(scale, rows):
    """-> its text, and the points of the figures ({name: points})."""
    claims = {
        "gap": claim_gap(scale, rows), "examples": by_examples(scale, rows),
        "size": claim_growth(scale, rows, scale.sizes,
                             "**Claim 2, the gap grows with the pre-training set**"),
        "steps": claim_growth(scale, rows, scale.equal_steps, "**Claim 2, control: more articles, "
                              "but as many steps**, a smaller set read more often"),
        "overlap": claim_overlap(scale, rows), "committee": claim_committee(scale, rows),
        "latency": claim_latency(scale, rows)}
    points = {name: claim.points for name, claim in claims.items() if claim.points}
    steps = points.pop("steps", {})
    if "size" in points:  # whose figure has the control beside it
        points["size"] = {task: (series, steps.get(task, []))
                          for task, series in points["size"].items()}
    blocks = [f"# Reproduction: {scale.name}", introduction(scale, rows, points)]
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
