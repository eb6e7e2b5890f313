"""The figures of experiments/reproduce.py, from the points that report.py has computed.

A point ends in a mean and a standard deviation, which becomes its error bar.
"""
from experiments.look import save
from experiments.plan import datasets_of

MARKERS = "os^Dv*"  # tell lines apart in gray
COLORS = ["#000000", "#d55e00", "#0072b2", "#666666", "#009e73", "#cc79a7"]
TITLES = {"fewrel": "FewRel", "fewrel-markers": "FewRel with markers", "agnews": "AG News",
          "dbpedia": "DBPedia", "pocket-places": "pocket places"}


def line(axes, points, i=0, label=None, style="-"):
    """Draw points (x, mean, standard deviation) in the i-th colour."""
    x, means, deviations = zip(*points)
    axes.errorbar(x, means, deviations, marker=MARKERS[i], color=COLORS[i], capsize=3, label=label,
                  linestyle=style)


def title(task, n_examples=True):
    """'AG News', and how many training examples a class it has."""
    dataset, _, n = task.partition(" --n_per_class=")
    return TITLES.get(dataset, dataset) + f",\n{n} a class" * bool(n and n_examples)


def examples(axes, scale, points):
    names = list(dict.fromkeys(name for lines in points.values() for name in lines))
    for panel, (dataset, lines) in zip(axes, points.items()):
        for name, values in lines.items():
            line(panel, values, names.index(name), name)
        ticks = [n for n, *_ in next(iter(lines.values()))]
        panel.set(title=title(dataset), xlabel="training examples", xscale="log")
        panel.set_xticks(ticks, [f"{n:,}" for n in ticks])
        panel.minorticks_off()
    axes[0].set(ylabel="test accuracy (%)")


def size(axes, scale, points):
    """Solid: each article is read once. Dashed: as many steps for each set."""
    for i, (task, (sizes, steps)) in enumerate(points.items()):
        line(axes[0], sizes, i)
        axes[0].annotate(title(task, False), sizes[0][:2], (-8, 0), textcoords="offset points",
                         color=COLORS[i], ha="right", va="center")
        if steps:
            line(axes[0], steps, i, style="--")
    ticks = sorted({n for series in points.values() for part in series for n, *_ in part})
    axes[0].axhline(0, color="gray", linewidth=0.8)
    axes[0].set_xscale("log", base=2)
    axes[0].set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes[0].minorticks_off()
    axes[0].margins(x=0.35)
    axes[0].set(xlabel="articles; solid: each read once, dashed: equal steps",
                ylabel="gap: accuracy gained (points)")


def overlap(axes, scale, points):
    """A thin line for each seed, whose classifiers share their examples, and their mean."""
    measure, shares, by_seed = points
    for i, gaps in enumerate(by_seed):
        axes[0].plot(shares, gaps, color="gray", linewidth=0.8, label="" if i else "one seed")
    means = [sum(gaps) / len(by_seed) for gaps in zip(*by_seed)]
    axes[0].plot(shares, means, color="black", marker="o", label="mean")
    axes[0].axhline(0, color="gray", linewidth=0.8)
    axes[0].set(title=title(scale.overlap_task), xlabel=f"{measure} (share)",
                ylabel="gap: accuracy gained (points)")


def committee(axes, scale, points):
    """A panel for each dataset, with a line for each number of examples."""
    numbers = {task: task.partition("=")[2] for task in points}
    names = list(dict.fromkeys(numbers.values()))
    for panel, dataset in zip(axes, datasets_of(points)):
        for task in (task for task in points if task.split()[0] == dataset):
            n = numbers[task]
            line(panel, points[task], names.index(n),
                 f"{n} examples a class" if n else "all examples")
        panel.axhline(0, color="gray", linewidth=0.8)
        panel.set(title=title(dataset), xlabel=f"members ({scale.main_model})",
                  xticks=[k for k, *_ in points[task]])
    axes[0].set(ylabel=f"accuracy above {scale.deep_model} (points)")


def draw(scale, points, folder):
    """Write folder/SCALE-NAME.png of each figure in `points` ({name: points}), see report.py.
    ImportError without matplotlib."""
    from matplotlib.figure import Figure  # not on top: the rest works without it
    panels = {examples: len(points.get("examples", ())), size: 1, overlap: 1,
              committee: len(datasets_of(points.get("committee", ())))}
    for plot, n in panels.items():
        name = plot.__name__
        if name not in points:
            continue
        figure = Figure(figsize=(3.6 + 1.6 * n, 3.5), layout="constrained")
        axes = figure.subplots(1, n, squeeze=False, sharey=True)
        plot(axes[0], scale, points[name])
        labels = {}  # of each name one, whichever panels it is in
        for panel in axes[0]:
            handles, names = panel.get_legend_handles_labels()
            labels = dict(zip(names, handles)) | labels
        if labels:
            figure.legend(labels.values(), labels, loc="outside upper center", ncols=max(n, 2),
                          frameon=False)
        save(figure, folder / f"{scale.name}-{name}.png")
