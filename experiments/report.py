"""From the rows of experiments/reproduce.py to a section of RESULTS.md: means, intervals, statements and tables.

Differences are taken seed by seed, between runs that share the seed and with it the fine-tuning examples; an interval
is the 95 % t interval of the mean of such differences. Accuracies are in per cent, their differences in points.
"""
import re
import statistics
import textwrap

import numpy as np

from data.tokenfile import write_atomically

# 97.5 % quantiles of Student's t with 1, 2, ... 20 degrees of freedom; the last serves for more, a little too wide
T_QUANTILES = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
               2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086]
CURVE = ["positions", "tokens", "seconds", "val_loss", "val_accuracy"]  # columns of a pre-training row's "curve"
MARGIN = 1.0  # points that a committee may lack and still count as accurate as the deep model
SPEEDUP = 5.0  # what our recipe aims at


def interval(values):
    """-> mean, lower and upper end of the 95 % t interval (Student 1908); of one value it is infinite."""
    mean, n = statistics.mean(values), len(values)
    if n < 2:
        return mean, -np.inf, np.inf
    half = T_QUANTILES[min(n - 2, len(T_QUANTILES) - 1)] * statistics.stdev(values) / n ** 0.5
    return mean, mean - half, mean + half


def verdict(values, least=0.0):
    """-> what these differences say of the claim that the true one is more than `least`."""
    _, low, high = interval(values)
    if len(values) < 2:
        return "**not decided** (one seed)"
    return ("supported" if low > least else "**not supported**, the opposite holds" if high < least else
            f"**not supported**: {len(values)} seeds don't decide it")


def spread(values):
    """'31.2 +- 2.0': mean and standard deviation, which one value doesn't have; a dash for none."""
    if not len(values):
        return "-"
    return f"{statistics.mean(values):.1f}" + (f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def between(values):
    """'+3.1 (+2.0 to +4.2)': mean and 95 % interval."""
    mean, low, high = interval(values)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})" if len(values) > 1 else f"{mean:+.1f}"


def say(text):
    """A paragraph of the section: wrapped, with an empty line behind it."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def table(head, rows):
    return ["", *(f"| {' | '.join(map(str, row))} |" for row in [head, ["---"] * len(head), *rows]), ""]


def accuracies(rows, model, task, corpus):
    """-> {seed: test accuracy in per cent}; corpus None: from random weights."""
    return {row["seed"]: 100 * row["accuracy"] for row in rows if row["kind"] == "finetune" and row["model"] == model
            and row["task"] == task and row["corpus"] == corpus}


def gaps(rows, model, task, corpus):
    """-> {seed: points by which pre-training on `corpus` beats random weights}, of the seeds that have both."""
    ours, scratch = (accuracies(rows, model, task, each) for each in (corpus, None))
    return {seed: ours[seed] - scratch[seed] for seed in sorted(ours.keys() & scratch.keys())}


def pretraining(rows, corpus):
    """-> a pre-training row of this set, or None."""
    return next((row for row in rows if row["kind"] == "pretrain" and row["corpus"] == corpus
                 and row.get("recipe") != "paper"), None)


# ---- the claims: each -> lines of text, the points of its figure -----------------------------------------------------

def claim_gap(s, rows):
    lines, points = [], []
    for model, (_, corpus) in s["models"].items():
        for task in s["tasks"]:
            found = gaps(rows, model, task, corpus)
            if found:
                ours, scratch = ([accuracies(rows, model, task, each)[seed] for seed in found]
                                 for each in (corpus, None))
                points.append((model, task, ours, scratch))
                lines.append([model, corpus, task, len(found), spread(ours), spread(scratch),
                              between(found.values()), verdict(list(found.values()))])
    held = [line for line in lines if line[-1] == "supported"]
    text = [say(f"**Claim 1, pre-training makes a gap**: supported for {len(held)} of {len(lines)} pairs of a model "
                "and a classification set, by the table's intervals.")]
    head = ["model", "pre-training set", "classification set", "seeds", "pre-trained, %", "random weights, %",
            "gap, points (95 % interval)", "claim"]
    return text + table(head, lines) if lines else [], points


def claim_size(s, rows):
    corpora = [corpus for corpus in s["sizes"] if pretraining(rows, corpus)]
    sizes = [pretraining(rows, corpus)["n_articles"] for corpus in corpora]
    text, points, lines = [], {}, [[f"{n:,}", f"{pretraining(rows, corpus)['tokens']:,}"]
                                   for n, corpus in zip(sizes, corpora)]
    for task in s["tasks"]:
        found = [gaps(rows, s["main"], task, corpus) for corpus in corpora]
        for line, each in zip(lines, found):
            line.append(between(each.values()) if each else "-")
        points[task] = [(n, list(each.values())) for n, each in zip(sizes, found) if each]
        seeds = sorted(set.intersection(*map(set, found))) if len(found) > 1 else []
        slopes = [float(np.polyfit(np.log2(sizes), [each[seed] for each in found], 1)[0]) for seed in seeds]
        if slopes:
            text.append(say(f"**Claim 2, the gap grows with the pre-training set**, on {task}: {between(slopes)} "
                            f"points a doubling ({len(slopes)} seeds): {verdict(slopes)}."))
    head = ["articles", "training tokens", *(f"gap on {task}, points (95 % interval)" for task in s["tasks"])]
    return text + table(head, [["0", "0", *["0"] * len(s["tasks"])], *lines]) if lines else [], points


def claim_overlap(s, rows):
    task, corpora = s["overlap"]
    found = {corpus: gaps(rows, s["main"], task, corpus) for corpus in corpora if pretraining(rows, corpus)}
    found = {corpus: each for corpus, each in found.items() if each}
    if len(found) < 2:
        return [], []
    shares = {corpus: pretraining(rows, corpus)["overlap"] for corpus in found}
    first, last = list(found)[0], list(found)[-1]
    rises = [found[last][seed] - found[first][seed] for seed in sorted(found[first].keys() & found[last].keys())]
    text = [say(f"**Claim 3, the gap grows with the overlap of tokens**, at equal size, on {task}: {last} against "
                f"{first} {between(rises)} points ({len(rises)} seeds): {verdict(rises)}.")] if rises else []
    names = list(shares[first])
    lines = [[corpus, f"{pretraining(rows, corpus)['tokens']:,}", *(f"{shares[corpus][name]:.3f}" for name in names),
              len(found[corpus]), between(found[corpus].values())] for corpus in found]
    head = ["pre-training set", "training tokens", *(name.replace("_", " ") for name in names), "seeds",
            "gap, points (95 % interval)"]
    return text + table(head, lines), [(names[0], shares[corpus][names[0]], list(found[corpus].values()))
                                       for corpus in found]


def claim_committee(s, rows):
    text, lines, points = [], [], {}
    for task in s["tasks"]:
        committees = {row["seed"]: row for row in rows if row["kind"] == "committee" and row["task"] == task}
        deep = accuracies(rows, s["deep"], task, s["models"][s["deep"]][1])
        if not committees or not deep:
            continue
        n, K = len(committees), min(len(row["by_size"]) for row in committees.values())
        sizes = []  # members, mean, deviation: over the committees, or over the subsets of a single one
        for by_size in list(zip(*(row["by_size"] for row in committees.values())))[:K]:
            means = [100 * each["mean"] for each in by_size]
            sizes.append((by_size[0]["size"], statistics.mean(means),
                          statistics.stdev(means) if n > 1 else 100 * by_size[0]["sd"]))
        points[task] = sizes, list(deep.values())
        # where there are several, committee and deep model of the same number have seen the same examples
        pairs = [(committees[seed if n > 1 else 0], deep[seed]) for seed in deep if n == 1 or seed in committees]
        differences = [100 * row["soft"] - each for row, each in pairs]
        text.append(say(f"**Claim 4, a soft committee of {K} {s['main']} is as accurate as {s['deep']}** (at most "
                        f"{MARGIN:g} point worse), on {task}: {between(differences)} points ({n} "
                        f"committee{'s' * (n > 1)}, {len(deep)} deep models): {verdict(differences, -MARGIN)}."
                        + (" The interval does not hold the spread of committees." if n == 1 else "")))
        lines += [[task, f"{s['main']}, committee of {k}", f"{mean:.1f}" + (f" +- {sd:.1f}" if n > 1 or k < K else "")]
                  for k, mean, sd in sizes]
        lines.append([task, s["deep"], spread(list(deep.values()))])
    if not lines:
        return [], {}, []
    over = "committees" if n > 1 else "subsets of the members,"
    text += table(["classification set", "", f"accuracy, %, mean and deviation over {over} or seeds"], lines)
    latency = next((row["latency"] for row in rows if "latency" in row), [])
    times = {each["name"]: each for each in latency}
    together = [each for name, each in times.items() if " members" in name]
    if "deep model" in times and together:
        for batch in (1, 64):
            deep, best = times["deep model"], min(together, key=lambda each: each[f"seconds_{batch}"])
            ratio = deep[f"seconds_{batch}"] / best[f"seconds_{batch}"]
            alone = deep[f"seconds_{batch}"] / times["one member"][f"seconds_{batch}"]
            text.append(say(f"**Claim 4, and it is faster**, batches of {batch}: the deep model takes {ratio:.2f} "
                            f"times as long as {best['name']}, and {alone:.2f} times as long as one member, which "
                            "is what members on devices of their own would take: "
                            f"{'supported' if ratio > 1 else '**not supported**'} on this one device."))
        text += table(["", "parameters", "MFLOPs a text", "batch of 1, ms", "batch of 64, ms"],
                      [[each["name"], f"{each['parameters']:,}", f"{each['flops'] / 1e6:,.0f}",
                        *(f"{1e3 * each[f'seconds_{batch}']:.1f}" for batch in (1, 64))] for each in latency])
    return text, points, latency


def reach(curve, column, target):
    """-> what a run had spent, {positions, tokens, seconds}, when the column of its curve first got as good as
    `target`, linearly between evaluations; None if it never did. val_loss falls, val_accuracy rises."""
    better = -1 if column == "val_loss" else 1
    rows = [dict(zip(CURVE, each)) for each in curve]
    for before, after in zip(rows, rows[1:]):
        if better * (after[column] - target) >= 0:
            share = (target - before[column]) / (after[column] - before[column])
            return {key: before[key] + share * (after[key] - before[key]) for key in CURVE[:3]}
    return None


def compare_recipes(s, rows):
    """What the paper's recipe spent for its last loss and accuracy, against what ours had spent when it got there; and
    what each got in classification."""
    paper = next((row for row in rows if row.get("recipe") == "paper"), None)
    ours = sorted((row for row in rows if row.get("recipe") == "ours"), key=lambda row: row["seed"])
    if not paper or not ours:
        return []
    text, lines = [], []
    for column, name, scale in (("val_loss", "loss", 1), ("val_accuracy", "masked accuracy", 100)):
        spent = [reach(row["curve"], column, paper[column]) for row in ours]
        if None in spent:
            text.append(say(f"**Cost**: {spent.count(None)} of our {len(spent)} runs never reached the {name} of the "
                            f"paper's recipe, {scale * paper[column]:.2f}."))
            continue
        ratios = {key: [paper[key] / each[key] for each in spent] for key in CURVE[:3]}
        least = min(ratios["tokens"] + ratios["seconds"])
        text.append(say(f"**Cost**: the {name} at which the paper's recipe ended, {scale * paper[column]:.2f}, took it "
                        f"{statistics.mean(ratios['tokens']):.1f} times the tokens and "
                        f"{statistics.mean(ratios['seconds']):.1f} times the seconds that ours took to get there; the "
                        f"aim of {SPEEDUP:g} times is {'' if least >= SPEEDUP else '**not** '}reached by every seed."))
        lines += [[f"{name} {scale * paper[column]:.2f}", key, f"{paper[key]:,.0f}",
                   f"{statistics.mean(each[key] for each in spent):,.0f}", spread(ratios[key])] for key in CURVE[:3]]
    text.append(say(f"Compared are {s['main']} on {paper['corpus']} by the paper's recipe (one run, "
                    f"{paper['tokens']:,} tokens, its schedule at its end) and {len(ours)} of our runs part of the "
                    f"way, under the same validation masks. Loss while only the tokens' frequencies are known: "
                    f"{paper['plateau']:.2f}. Positions are what was computed, padding included. Evaluations are not "
                    "timed. Ours is interpolated between evaluations."))
    text += table(["until", "", "paper's recipe", "ours", "ratio"], lines) if lines else []

    # at their ends: what are they good for?
    lines, whole = [], {key: statistics.mean(paper[key] / row[key] for row in ours) for key in ("tokens", "seconds")}
    for task in s["tasks"]:
        theirs, own = (accuracies(rows, model, task, paper["corpus"]) for model in (paper["model"], s["main"]))
        seeds = sorted(theirs.keys() & own.keys())
        if seeds:
            differences = [own[seed] - theirs[seed] for seed in seeds]
            lines.append([task, len(seeds), spread([theirs[seed] for seed in seeds]),
                          spread([own[seed] for seed in seeds]), between(differences), verdict(differences, -MARGIN)])
    if lines:
        text.append(say(f"**Cost, in classification**: our whole runs took {whole['tokens']:.1f} times fewer tokens "
                        f"and {whole['seconds']:.1f} times fewer seconds than the run by the paper's recipe. Are our "
                        f"models as accurate (at most {MARGIN:g} point worse)? The paper's is pre-trained once, and "
                        "fine-tuned with each seed."))
        text += table(["classification set", "seeds", "paper's recipe, %", "ours, %",
                       "difference, points (95 % interval)", "claim"], lines)
    return text


def costs(rows):
    """The table of what each kind of run took."""
    groups = {}
    for row in rows:
        if row["kind"] != "committee":
            name = "pre-training" if row["kind"] == "pretrain" else "fine-tuning"
            groups.setdefault((name, row["model"], row.get("task") or row["corpus"]), []).append(row)
    lines = []
    for key, some in groups.items():
        mean = {name: statistics.mean(row[name] for row in some) for name in ("tokens_per_second", "seconds", "flops")}
        lines.append([*key, len(some), f"{mean['tokens_per_second']:,.0f}", f"{mean['seconds']:,.0f}",
                      f"{mean['flops']:.2e}", f"{sum(row['flops'] for row in some):.2e}"])
    return table(["", "model", "set", "runs", "tokens/s", "s a run", "FLOPs a run", "all runs"], lines)


def section(scale, s, rows):
    """-> the text between the markers, and the points of the figures (dict)."""
    gap, gap_points = claim_gap(s, rows)
    size, size_points = claim_size(s, rows)
    overlap, overlap_points = claim_overlap(s, rows)
    committee, committee_points, latency = claim_committee(s, rows)
    dates, machines, versions = (sorted({row[key] for row in rows}) for key in ("date", "machine", "torch"))
    days = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    trained = [row for row in rows if row["kind"] != "committee"]
    home = s["models"][s["main"]][1]
    commands = [next((row["command"] for row in trained if (row["kind"], row["model"], row["corpus"]) == wanted), None)
                for wanted in [("pretrain", s["main"], home), ("finetune", s["main"], home),
                               ("finetune", s["main"], None)]]
    points = {"gap": gap_points, "size": size_points, "overlap": overlap_points, "committee": committee_points,
              "latency": latency}
    figures = ", ".join(f"[{name}](figures/{scale}-{name}.png)" for name, some in points.items() if some)
    lines = [f"## Reproduction: {scale}", "",
             say(f"`python -m experiments.reproduce --scale={scale}`, {days}, {' and '.join(machines)}, PyTorch "
                 f"{' and '.join(versions)}: {len(rows)} runs, {sum(row['seconds'] for row in trained) / 60:.0f} "
                 f"minutes and {sum(row['flops'] for row in trained):.2e} FLOPs of training. All commands are in "
                 f"experiments/results/{scale}.jsonl, such as"),
             *(f"    {command}" for command in commands if command), "",
             say("A seed is a pre-training and a fine-tuning of its own. Given are means and standard deviations over "
                 "seeds, and 95 % t intervals of the differences seed by seed, which are not corrected for their "
                 f"number. Figures, with standard deviations as error bars: {figures}."),
             *gap, *size, *overlap, *committee, *compare_recipes(s, rows), *costs(rows)]
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)), points


def write(scale, s, rows, folder):
    """Rewrite the section of folder/RESULTS.md, and folder/figures/SCALE-*.png where matplotlib is installed."""
    if not rows:
        print("no results yet")
        return
    text, points = section(scale, s, rows)
    path, begin, end = folder / "RESULTS.md", f"<!-- reproduce {scale} -->", f"<!-- end {scale} -->"
    old = path.read_text() if path.exists() else ""
    if begin not in old or end not in old:
        old = f"{old.rstrip()}\n\n{begin}\n{end}\n".lstrip()
    before, after = old.split(begin)[0], old.split(end)[1]
    write_atomically(path, f"{before}{begin}\n{text.strip()}\n{end}{after}".encode())
    print("\n".join(paragraph for paragraph in text.split("\n\n") if paragraph.startswith("**")))
    try:
        from experiments import figures
        figures.draw(scale, s, points, folder / "figures")
    except ImportError:
        print("no figures: pip install matplotlib")
    print(f"wrote {path}")
